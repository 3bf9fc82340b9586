"""`python -m switch_lm.check`: its arguments, what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, MakeRun, checkpoint_of, tiny_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from switch_lm.certificate import show
from switch_lm.certificate.finding import Finding
from switch_lm.check import main, parser
from switch_lm.config.every_router import overrides_of_each
from switch_lm.config.families import FAMILIES
from switch_lm.routers.expert_choice import ExpertChoiceRouter
from switch_lm.routers.threshold import ThresholdRouter
from switch_lm.storage import checkpoint

SMALL = ["data.path=text.txt", "model.num_layers=2", "model.d_model=16", "model.num_heads=2", "model.d_ff=16"]
SMALL += ["model.context_length=8", "model.num_experts=4", "data.batch_size=4", "trainer.device=cpu"]


def test_the_certificate_of_a_run_is_printed_and_written_to_its_folder(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("tiny")
    assert main(["--run", "tiny", "--verbose"]) == 0
    out = capsys.readouterr().out
    written = json.loads((folder / "check.json").read_text())
    assert written["checkpoint"] == "outputs/runs/tiny/checkpoints/best.ckpt" and "policies" not in written
    assert len(written["findings"]) == 22
    for finding in written["findings"]:
        assert finding["check"] in out and finding["verdict"] in ("PASS", "LEAKS")
        assert " ".join(finding["measured"].split()[:3]) in out
        assert finding["measured"] and finding["meaning"] and finding["figures"]
    counts = [sum(f["verdict"] == verdict for f in written["findings"]) for verdict in ("PASS", "LEAKS")]
    assert f"{counts[0]} PASS, {counts[1]} LEAKS" in out
    show.certificate([Finding(**finding) for finding in written["findings"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("LEAKS  other rows, training: expected of this rule; harmless in evaluation ")
    assert [line.split()[0] for line in lines].count("PASS") == counts[0] and len(lines) <= 30
    assert lines[-1] == f"{counts[0]} PASS, {counts[1]} LEAKS; --verbose prints all that was measured"


@pytest.mark.parametrize("board", ["tensorboard", "csv"])
def test_the_certificate_is_a_text_in_tensorboard_if_that_is_a_board_of_the_run(board: str, make_run: MakeRun) -> None:
    folder, content = make_run("tiny"), checkpoint_of(tiny_model(), TEXT, "fp32")
    content["switch_lm"]["config"]["logger"] = {"boards": {board: {}}}
    checkpoint.write(content, folder / "checkpoints" / "best.ckpt")
    assert main(["--run", "tiny"]) == 0
    tensors = EventAccumulator(str(folder)).Reload()
    assert tensors.Tags()["tensors"] == ["summary/certificate/text_summary"] * (board == "tensorboard")
    if board == "tensorboard":
        (result,) = tensors.Tensors("summary/certificate/text_summary")
        assert b"own future, training" in result.tensor_proto.string_val[0]


@pytest.mark.parametrize("changes", [{"switch_layers": [1]}, {"switch_every": 2}], ids=str)
def test_a_layer_is_called_by_the_number_of_its_block(
    changes: dict[str, Any], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("second", model=tiny_model(**changes))
    assert main(["--run", "second", "--verbose"]) == 0
    assert set(re.findall(r"layer \d+", capsys.readouterr().out)) == {"layer 01"}
    figures = {f["check"]: f["figures"] for f in json.loads((folder / "check.json").read_text())["findings"]}
    assert list(figures["router learns"]) == ["layer 01"]


def test_a_fault_gives_exit_code_1_and_is_in_the_file(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    for layer in model.switch_layers:
        layer.experts.w_in_EDF.data[1:] = layer.experts.w_in_EDF.data[0]
        layer.experts.w_out_EFD.data[1:] = layer.experts.w_out_EFD.data[0]
    make_run("copies", model=model)
    assert main(["--run", "copies", "--json", "there.json"]) == 1
    failed = [f["check"] for f in json.loads(Path("there.json").read_text())["findings"] if f["verdict"] == "FAIL"]
    assert "experts differ" in failed
    assert f"{len(failed)} FAIL" in capsys.readouterr().out


def test_every_policy_has_a_line_with_what_was_measured(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run("tiny", model=tiny_model(capacity_factor=0.75))
    assert main(["--run", "tiny", "--all-policies"]) == 0
    out, policies = capsys.readouterr().out, json.loads((folder / "check.json").read_text())["policies"]
    assert policies["capacity_factor"] == 0.75 and "capacity factor 0.75" in out
    assert len(policies["measured"]) == 23
    for one in policies["measured"]:
        line = next(line for line in out.splitlines() if line.startswith(f" {one['policy']} "))
        assert f"{one['loss']:.4f}" in line and f"{one['without_slot']:.1%}" in line


def test_a_configuration_is_trained_for_some_steps_or_checked_as_initialised(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("tiny")  # writes the text too
    assert main(["--steps", "0", *SMALL, "router.drop_order=probability"]) in (0, 1)
    initialised = json.loads(Path("outputs/check.json").read_text())
    assert main(["--steps", "30", *SMALL, "router.drop_order=probability"]) in (0, 1)
    trained = json.loads(Path("outputs/check.json").read_text())
    assert trained["overrides"][-1] == "router.drop_order=probability" and trained["steps"] == 30
    losses = [
        f["figures"]["val_loss"] for w in (initialised, trained) for f in w["findings"] if "val_loss" in f["figures"]
    ]
    assert losses[1] < losses[0] - 0.1
    assert [f["verdict"] for f in trained["findings"] if f["check"] == "own future, training"] == ["LEAKS"]
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["check.json", "runs"]
    assert [path.name for path in Path("outputs/runs").iterdir()] == ["tiny"]
    assert "training 30 steps" in capsys.readouterr().err


def test_a_dense_model_is_checked_for_what_concerns_it(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run("dense", model=tiny_model(switch_every=0))
    assert main(["--run", "dense"]) == 0
    assert {f["verdict"] for f in json.loads((folder / "check.json").read_text())["findings"]} == {"PASS"}
    (folder / "check.json").unlink()
    assert main(["--run", "dense", "--all-policies"]) == 2
    assert "a dense model routes nothing" in capsys.readouterr().err
    assert not (folder / "check.json").exists()


def test_with_a_single_expert_no_second_choice_is_tried(make_run: MakeRun) -> None:
    folder = make_run("one", model=tiny_model(num_experts=1, capacity_factor=0.75))
    assert main(["--run", "one", "--all-policies"]) == 0
    measured = json.loads((folder / "check.json").read_text())["policies"]["measured"]
    assert len(measured) == 21 and not [one for one in measured if one["policy"].startswith("top 2")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "tiny", "alpha=0.1"], "give a run or a configuration, not both"),
        (["--steps", "5"], "give it with a configuration"),
        (["--all-routers", "--run", "tiny"], "--all-routers and --run tiny: the first trains models of its own"),
        (["--all-routers", "--all-policies"], "--all-routers and --all-policies"),
        (["--all-routers", "router=hash"], "router=hash: --all-routers takes every router in turn; leave it out"),
        (["--all-routers", "model.num_expert=4"], "did you mean model.num_experts"),
        (["--all-routers", "model.switch_every=0", "data.path=text.txt"], "a dense model routes nothing"),
        (["model.num_expert=4"], "did you mean model.num_experts"),
        (["model.num_experts=0"], "model.num_experts=0: must be at least 1"),
        (["model.num_experts=2,4"], "num_experts"),
        (["experiment=../../x"], "experiment"),
        (["resume=tiny"], "check a run with --run NAME"),
        (["--steps", "0", "init_from=nowhere", "data.path=text.txt"], "init_from=nowhere"),
        (["--steps", "0", "model.context_length=5000", "data.path=text.txt"], "model.context_length=5000"),
        (["alpha"], "alpha"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_exit_code_2(
    arguments: list[str], message: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("tiny")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) <= 3
    assert not list(Path("outputs").glob("**/check.json"))


def test_the_help_explains_every_verdict() -> None:
    assert all(verdict in parser().format_help() for verdict in ("PASS", "LEAKS", "FAIL"))


# --- Every family of routers


def line_of(out: str, name: str) -> str:
    return next(line for line in out.splitlines() if line.startswith(f" {name} "))


@pytest.fixture
def some_routers(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three families, and one that has no YAML."""
    make_run("tiny")
    every = FAMILIES["router"]
    some = {name: every[name] for name in ("frozen", "expert_choice", "threshold")} | {"no_yaml": every["switch"]}
    monkeypatch.setitem(FAMILIES, "router", some)


@pytest.mark.usefixtures("some_routers")
def test_every_router_is_trained_and_certified_and_one_that_cannot_be_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--all-routers", "--steps", "6", *SMALL, "model.capacity_factor=0.75", "router.warmup_steps=50"]) == 2
    out, written = capsys.readouterr().out, json.loads(Path("outputs/check.json").read_text())
    routers = written["routers"]
    assert written["steps"] == 6 and list(routers) == ["frozen", "expert_choice", "threshold", "no_yaml"]
    verdicts = {name: one.get("verdict") for name, one in routers.items()}
    assert verdicts == {"frozen": "PASS", "expert_choice": "LEAKS", "threshold": "PASS", "no_yaml": None}
    for name in ("frozen", "expert_choice", "threshold"):
        line = line_of(out, name)
        figures = {finding["check"]: finding["figures"] for finding in routers[name]["findings"]}
        gap, loads = figures["loss gap, training"], figures["every expert used"]
        assert verdicts[name] in line and ("future nats" in gap) == (name == "expert_choice")
        assert (f"{gap['nats']:+.4f}" in line) == (name != "threshold")  # which trains as it generates
        assert f" {loads['most']:.2f} " in line and f" {loads['experts_per_token']:.2f} " in line
    assert line_of(out, "expert_choice").split()[1:3] == ["LEAKS", "yes"]
    assert routers["frozen"]["experts_per_token"] == 1.0 and routers["frozen"]["without_slot"] > 0.0
    assert "threshold: after its warm-up of 2 steps" in out
    assert "no_yaml is not certified: router=no_yaml: no such choice" in " ".join(out.split())


@pytest.mark.usefixtures("some_routers")
def test_a_router_that_fails_gives_exit_code_1_and_its_checks_below_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ThresholdRouter, "oracle", None)
    monkeypatch.setattr(ExpertChoiceRouter, "above", None)  # as a plugin may fail
    assert main(["--all-routers", "--steps", "0", *SMALL]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "threshold: FAIL of oracle" in out and "expert_choice is not certified: TypeError: 'NoneType'" in out


def test_an_override_is_for_the_routers_that_have_the_key_and_what_alpha_cannot_balance_has_a_bias() -> None:
    each = overrides_of_each(["alpha=0.1", "router.balanced=false"])
    assert {name for name, words in each.items() if "router.balanced=false" in words} == {"hash"}
    assert {name for name, words in each.items() if "balance=quantile" in words} == {"frozen"}
    assert all({"alpha=0.1", "experiment=smoke", f"router={name}"} <= set(words) for name, words in each.items())
    other = overrides_of_each(["experiment=short", "balance.name=none"])["frozen"]
    assert not {"experiment=smoke", "balance=quantile"} & set(other)
    two = overrides_of_each(["router.top_k=2", "router.drop_order=random", "balance.ema=0.5"])
    assert {name for name, words in two.items() if "router.top_k=2" in words} == {"topk", "sigmoid", "threshold"}
    assert "router.drop_order=random" not in two["threshold"] and "balance=quantile" in two["frozen"]
