"""Which folder a run gets: a name that holds nothing is free, and no clock decides what is newest."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MakeRun, folder_of

from switch_lm import evaluate
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import KEYS, Config, changes_result
from switch_lm.storage import checkpoint, choice, locks
from switch_lm.storage.run_folder import RESULT, RunFolder
from switch_lm.storage.runs import find_run, newest_whole
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train


def begun(config: Config, **changes: object) -> Path:
    """The folder of a run that was started and saved nothing."""
    config = replace(config, **changes)  # type: ignore[arg-type]
    run = choice.choose(config)
    run.create(config, {}).close()
    return run.path


def test_a_run_without_a_checkpoint_does_not_use_up_its_name(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder_of(config) / "checkpoints").mkdir(parents=True)  # of one that was killed at once
    (folder_of(config) / ".config.yaml.0a1b.part").write_text("format")
    with monkeypatch.context() as patch:
        patch.setattr(SwitchModule, "_seed_noise", None)
        with pytest.raises(TypeError):
            train(replace(config, alpha=0.5))
    assert train(config)["steps"] == 12


def test_a_process_a_checkpoint_or_a_result_keeps_a_name_taken(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    run = choice.choose(config)
    with run.create(config, {}), pytest.raises(ConfigError, match="another process is working there"):
        begun(config)
    waiting = choice.choose(config)
    (run.checkpoints / "last.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="another process has trained here in the meantime"):
        waiting.create(config, {})
    with pytest.raises(ConfigError, match="or continue it with resume=run"):
        choice.choose(config)
    run.write_json(RESULT, {})
    with pytest.raises(ConfigError, match=f"which is finished; .* look at it: .* --run {run.path}$"):
        choice.choose(replace(config, resume="auto"))
    for resume, why in (
        ("run", f"is finished; to train it longer, repeat .* resume=run trainer.max_steps=N, N above its {12}$"),
        ("nowhere", "is not a run"),
    ):
        with pytest.raises(ConfigError, match=why):
            choice.choose(replace(config, resume=resume))


def test_a_run_without_a_name_is_called_after_what_varies_and_two_at_once_get_two_folders(config: Config) -> None:
    config = replace(config, name=None)
    given = {"experiment": "short", "logger": "all", "trainer.device": "cpu", "model.capacity_factor": 0.5}
    first, second = (choice.choose(config, given) for _ in range(2))
    assert first.path == second.path == Path(config.outputs) / "runs" / "short_cap0.5"
    made = [choice.create(run, config, {}) for run in (first, second)]
    third, fourth = (choice.choose(config, given) for _ in range(2))
    made += [choice.create(run, config, {}) for run in (third, fourth)]
    try:
        assert [run.path.name for run, _ in made] == [
            "short_cap0.5",
            *(f"short_cap0.5-{number}" for number in (2, 3, 4)),
        ]
    finally:
        for _, lock in made:
            lock.close()
    (made[1][0].checkpoints / "last.ckpt").write_bytes(b"x")
    assert choice.choose(config, given).path == first.path  # it failed: nothing is lost
    (first.checkpoints / "last.ckpt").write_bytes(b"x")
    assert choice.choose(config, given).path == made[2][0].path
    assert choice.choose(config, {"seed": 3}).path.name == "seed3"
    assert choice.choose(config, {"trainer.threads": 2}).path.name == choice.choose(config).path.name == "switch"
    with pytest.raises(ConfigError, match="has trained here in the meantime"):  # a name that was chosen stays
        choice.create(replace(first, called=None), config, {})


def test_resume_auto_says_what_it_continues_or_why_it_starts_a_new_run(config: Config) -> None:
    auto = replace(config, name=None, resume="auto")

    def note(**changes: object) -> str:
        return str(choice.choose(replace(auto, **changes)).note)  # type: ignore[arg-type]

    assert note() == "starts a new run: there is no run yet"
    path = begun(config)
    assert note() == f"continues {path} from its beginning: it has no checkpoint"
    differs = "the nearest is run, which differs: alpha was 0.01, now 0.5"
    assert note(alpha=0.5) == f"starts a new run: no unfinished run has this configuration; {differs}"
    RunFolder(path).write_json(RESULT, {})
    longer = "; resume=run trainer.max_steps=N trains that one longer"
    assert note() == f"starts a new run: run has this configuration and is finished{longer}"
    assert note(trainer=replace(config.trainer, max_steps=20)).endswith(f"trainer.max_steps was 12, now 20{longer}")


@pytest.mark.parametrize("key", [key for key in KEYS if changes_result(key) and key not in ("seed", "data.path")])
def test_a_key_that_a_stored_run_lacks_has_the_value_that_its_absence_implies(key: str, config: Config) -> None:
    default = Config(name="run", outputs=config.outputs)
    file = begun(default) / "config.yaml"
    group, _, last = key.rpartition(".")
    head, block, rest = file.read_text().partition(f"{group}:\n" if group else "format: 3\n")
    file.write_text(head + block + re.sub(rf"(?m)^{'  ' if group else ''}{last}: .*\n", "", rest, count=1))
    assert choice.differences(file.parent, default) == {}


def test_an_unknown_key_and_a_seed_that_is_not_stated_are_named(config: Config) -> None:
    file = begun(config) / "config.yaml"
    file.write_text(file.read_text().replace("\nseed: 0\n", "\nsed: 0\n"))
    with pytest.raises(ConfigError, match=r"states sed=0, which this version does not know .*did you mean seed") as no:
        choice.choose(replace(config, resume="run"))
    assert "seed is not stated in its config.yaml, now 0" in str(no.value)


def test_the_last_start_and_the_latest_step_are_the_newest_though_the_clock_went_back(config: Config) -> None:
    first, second = begun(config), begun(config, name="again")
    for file, age in ((first / "config.yaml", 300), (second / "config.yaml", 100)):
        os.utime(file, (age, age))
    assert choice.choose(replace(config, name=None, resume="auto")).path == second
    folders = [path / "checkpoints" for path in (first, second)]
    for folder, name, step, age in ((0, "best", 5, 400), (1, "best", 300, 100), (1, "step_000070", 70, 200)):
        file = folders[folder] / f"{name}.ckpt"
        checkpoint.write({"global_step": step, "loops": {"global_step": 1}}, file)
        os.utime(file, (age, age))
    assert find_run(None, Path(config.outputs)) == second
    assert newest_whole(folders[1]) == folders[1] / "best.ckpt"


def test_a_checkpoint_implies_what_it_lacks(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    best = make_run() / "checkpoints" / "best.ckpt"
    content = checkpoint.read(best)
    del content["switch_lm"]["model"]["dropout"], content["switch_lm"]["router"]["jitter"]
    checkpoint.write(content, best)
    assert evaluate.main(["--batch-size", "4"]) == 0
    content["state_dict"]["model.embedding.weight"][0] = float("nan")
    unknown_key = {"num_expert": 4}, 2, "states model.num_expert=4,"
    for unknown, code, message in (({}, 1, "embedding.weight has values"), unknown_key):
        content["switch_lm"]["model"] |= unknown
        checkpoint.write(content, best)
        assert evaluate.main([]) == code and message in capsys.readouterr().err
