"""Several jobs in one command: each as if alone, failures listed, and the same command continues after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compare import same
from copied_process import Done
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from sweep_runs import block, rows, run, weights

from switch_lm.config.paths import config_dir
from switch_lm.config.rules import resolve
from switch_lm.config.schema import Config, TrainerConfig
from switch_lm.measure.ledger import run_ledger
from switch_lm.reporting.controls import SAME_WORK
from switch_lm.storage.names import short_name
from switch_lm.sweep import jobs as sweep
from switch_lm.sweep.grid import Grid
from switch_lm.sweep.jobs import as_mapping, job_folder, read_jobs, side_by_side


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done, Done]:
    """The folder, a sweep whose second job can't run, and the same command once more."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = ["-m", "model.capacity_factor=1.0,2.0,null", "seed=3", "name=three"]
    block(folder / "outputs/sweeps/three/cap2.0")
    first = run(folder, *arguments)
    return folder / "outputs" / "sweeps" / "three", first, run(folder, *arguments)


def test_a_failing_job_is_listed_with_its_reason_and_the_others_run(swept: tuple[Path, Done, Done]) -> None:
    folder, done, _ = swept
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    records = read_jobs(folder)
    assert [record["status"] for record in records] == ["done", "failed", "done"]
    assert "cap2.0 cannot be written (File exists)" in records[1]["error"]
    assert records[2]["overrides"] == {"model.capacity_factor": None}  # what varies, and no more
    assert "2.0  FAILED: outputs=outputs: " in rows(done)[1]
    result = json.loads((folder / "cap1.0" / "result.json").read_text())
    assert f"{result['val_loss']:.4f}" in rows(done)[0]


def test_it_is_told_at_once_how_many_jobs_of_what_will_run_and_each_adds_one_row(
    swept: tuple[Path, Done, Done],
) -> None:
    folder, done, _ = swept
    lines = done.stdout.splitlines()
    assert lines[0] == "Sweep of 3 jobs: model.capacity_factor 1.0, 2.0, null"
    assert lines[1] == "resolves  no difference, with one seed; several: seed=0,1,2,3,4"
    heads = [number for number, line in enumerate(lines) if line.split()[:2] == ["job", "capacity_factor"]]
    assert len(heads) == 1 and [line.split()[0] for line in lines[heads[0] + 1 :][:3]] == ["1/3", "2/3", "3/3"]
    assert {len(line) for line in rows(done)[::2]} == {len(lines[heads[0]])}  # aligned with the head
    assert rows(done)[-1].endswith(" 0 s")  # nothing is left
    command = json.loads((folder / "sweep.json").read_text())["command"]
    assert command.startswith("python -m switch_lm.train ") and command.endswith(" name=three -m")


def test_the_same_command_keeps_what_is_done_and_tries_what_failed_again(swept: tuple[Path, Done, Done]) -> None:
    _, _, again = swept
    assert again.returncode == 1
    assert ["before" in row for row in rows(again)] == [True, False, True]
    assert "FAILED" in rows(again)[1]


def test_everything_lies_under_outputs_and_a_job_is_named_by_what_varies(swept: tuple[Path, Done, Done]) -> None:
    folder = swept[0]
    assert sorted(path.name for path in folder.parents[2].iterdir()) == ["outputs", "text.txt"]
    assert sorted(path.name for path in folder.parents[1].iterdir()) == ["start.json", "sweeps"]
    assert sorted(path.name for path in folder.iterdir() if (path / "config.yaml").exists()) == [
        "cap1.0",
        "capnull",
    ]


def test_a_job_gives_what_the_same_run_gives_alone(swept: tuple[Path, Done, Done]) -> None:
    folder = swept[0]
    alone = run(folder.parents[2], "model.capacity_factor=null", "seed=3", "name=alone")
    assert alone.returncode == 0, alone.stderr
    assert same(weights(folder / "capnull"), weights(folder.parents[1] / "runs" / "alone"))


def test_a_sweep_does_not_mix_with_another_of_its_name(swept: tuple[Path, Done, Done]) -> None:
    folder = swept[0]
    result = folder / "cap1.0" / "result.json"
    before = result.read_bytes()
    other = run(folder.parents[2], "-m", "model.capacity_factor=1.0,2.0", "seed=4", "name=three")
    assert other.returncode == 1
    assert "another configuration (seed was 3, now 4)" in other.stdout and "name=NAME" in other.stdout
    assert result.read_bytes() == before


@pytest.mark.slow
def test_routers_and_layers_are_swept_and_reported_by_their_names(tmp_path: Path) -> None:
    overrides = ["router=switch,topk", "router.jitter=0.0", "model.switch_layers=[0],[]", "model.num_layers=2"]
    done = run(tmp_path, "-m", *overrides, "name=layers")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "layers"
    records = read_jobs(folder)
    varied = [(record["overrides"]["router"], record["overrides"]["model.switch_layers"]) for record in records]
    assert varied == [("switch", "[0]"), ("switch", "[]"), ("topk", "[0]"), ("topk", "[]")]
    table = (folder / "report.md").read_text().split("## Results")[1]
    names = [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| ")]
    assert names[2:5] == ["| dense", "| top-2", "| Switch"]


def test_names_hold_nothing_that_leaves_their_folder_and_long_ones_stay_apart() -> None:
    assert short_name({"data.path": "../../x y", "seed": 1}).startswith("path.._.._x_y_seed1-")
    assert short_name({"model.capacity_factor": 0.5, "seed": 0, "model.num_experts": 4}) == "cap0.5_seed0_exp4"
    assert short_name({"variant": "switch_1.0", "seed": 1, "model.capacity_factor": None}) == "switch_1.0_seed1_capnull"
    assert short_name({"trainer.max_steps": 40, "optim.lr": 0.01, "router": "topk"}) == "max_steps40_lr0.01_topk"
    assert short_name({"init_from": "sixteen", "train_only": "router"}) == "from_sixteen_only_router"
    assert short_name({"model.num_layers": 2}) != short_name({"model.num_heads": 2}) == "num_heads2"
    averages = [short_name({"optim.averages": value}) for value in ("[0.9]", "[0.5,tail_0.5]", "[]")]
    assert averages == ["aver0.9", "aver0.5+tail_0.5", "avernone"] and short_name({"variant": ".."}).startswith("job-")
    long = [short_name({"data.path": "a" * 500 + end}) for end in "bc"]
    assert len(set(long)) == 2 and all(len(name) <= 100 for name in long)


def test_a_sweep_that_was_begun_under_older_names_goes_on_under_them(tmp_path: Path) -> None:
    varied = {"model.capacity_factor": 0.5, "seed": 1}
    assert job_folder(tmp_path, varied) == tmp_path / "cap0.5_seed1"
    for value, folder in ((0.5, "cap0.5_seed1"), (0.25, "cap0.5_seed1-2")):  # the second was renamed by hand
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "job.json").write_text(json.dumps({"overrides": varied | {"seed": value}}))
    assert job_folder(tmp_path, varied) == tmp_path / "cap0.5_seed1-3"
    older = tmp_path / "capacity_factor=0.5,seed=1"
    older.mkdir()
    (older / "job.json").write_text("{}")
    assert job_folder(tmp_path, varied) == older


def test_overrides_are_read_as_values() -> None:
    assert as_mapping(["alpha=0.1", "+x.y=null", "name=abc", "seed=3"]) == {
        "alpha": 0.1,
        "x.y": None,
        "name": "abc",
        "seed": 3,
    }


# --- The sweeps that are shipped


def planned(*overrides: str) -> tuple[list[dict[str, Any]], dict[tuple[Any, ...], Config]]:
    """Every job of a sweep in order, and the configurations of those of its first seed."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
        assert str(config.hydra.mode) == "RunMode.MULTIRUN"
        grid = Grid.of(config)
        jobs = grid.jobs() or []
        configs = {}
        for job in (job for job in jobs if job["seed"] == jobs[0]["seed"]):
            arguments = [f"{key}={value}" for key, value in job.items()]
            cfg = compose("train", [*grid.fixed, *arguments])
            configs[tuple(v for k, v in job.items() if k != "seed")] = resolve(cfg)
    return jobs, configs


def test_the_capacity_sweep_has_five_factors_and_two_dense_controls_with_five_seeds_each() -> None:
    jobs, configs = planned("experiment=capacity_sweep")
    assert [job["seed"] for job in jobs] == [n // 7 for n in range(35)]  # every variant once before any twice
    sparse = [c for c in configs.values() if c.model.num_switch_layers]
    assert [c.model.capacity_factor for c in sparse] == [0.5, 1.0, 1.25, 2.0, None]
    dense, as_many = (c for c in configs.values() if not c.model.num_switch_layers)
    assert {c.model.d_ff for c in sparse} == {dense.model.d_ff}
    all_products = [run_ledger(c, vocab_size=65).as_plain() for c in (as_many, sparse[-1])]
    control, dropless = (work["training"] + work["optimizer"] for work in all_products)
    assert control == pytest.approx(dropless, rel=SAME_WORK)
    assert len({json.dumps([c.trainer.max_steps, vars(c.optim), c.data.batch_size]) for c in configs.values()}) == 1


def test_the_full_capacity_sweep_has_all_controls_and_five_seeds_of_the_default_model() -> None:
    jobs, configs = planned("experiment=capacity_sweep_full")
    assert {job["seed"] for job in jobs} == {0, 1, 2, 3, 4} and len(jobs) == 5 * len(configs)
    factors = {c.model.capacity_factor for (name,), c in configs.items() if name.startswith("switch")}
    assert factors == {0.5, 0.75, 1.0, 1.25, 1.5, 2.0, None}
    assert {c.model.capacity_factor for c in configs.values() if c.router.top_k == 2} == {2.0, 2.5}
    assert configs["dense_wide",].model == resolve_default("model=dense_wide").model
    assert configs["dense",].model == resolve_default("model=dense").model
    assert configs["random_drops",].router.random_drop_rate > 0 and configs["switch_1.25",].model == Config().model


def resolve_default(*overrides: str) -> Config:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def test_the_alpha_and_experts_sweeps_vary_alpha_and_experts() -> None:
    _, by_alpha = planned("experiment=alpha_sweep")
    assert [c.alpha for c in by_alpha.values()] == [0, 1e-4, 1e-3, 1e-2, 1e-1]
    _, by_experts = planned("experiment=experts_sweep")
    assert [c.model.num_experts for c in by_experts.values()] == [1, 2, 4, 8, 16, 32, 64]
    assert {c.model.capacity_factor for c in by_experts.values()} == {None}  # equal computation, whatever the load


def test_an_override_narrows_a_shipped_sweep() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", ["experiment=capacity_sweep"], return_hydra_config=True)
    with open_dict(config.hydra):
        config.hydra.overrides.task = ["experiment=capacity_sweep", "seed=7,8", "variant=dense"]
    assert Grid.of(config).jobs() == [{"seed": 7}, {"seed": 8}]


# --- Side by side


@pytest.mark.parametrize(("n_jobs", "at_once"), [(1, 1), (3, 3), (-1, 8), (-3, 6), (-20, 1)])
def test_as_many_jobs_as_joblib_runs_at_once_share_the_cores(
    n_jobs: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "num_cores", lambda: 8)
    assert side_by_side({"n_jobs": n_jobs}) == at_once
    config = sweep._with_threads(OmegaConf.structured(Config()), {"n_jobs": n_jobs})
    assert config.trainer.threads == (None if at_once == 1 else 8 // at_once)


def test_a_clusters_job_has_the_threads_it_asked_for_and_a_configured_number_stays() -> None:
    assert sweep._with_threads(OmegaConf.structured(Config()), {"cpus_per_task": 5}).trainer.threads == 5
    set_by_hand = OmegaConf.structured(Config(trainer=TrainerConfig(threads=3)))
    assert sweep._with_threads(set_by_hand, {"n_jobs": 8}).trainer.threads == 3
