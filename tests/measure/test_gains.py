"""Where one model is better than another: planted differences are found, and scenes are the units."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRun, checkpoint_of, tiny_model

from switch_lm.evaluate import main
from switch_lm.measure import gains as measured
from switch_lm.measure.gains import OTHERS, gains
from switch_lm.stats.intervals import t_quantile
from switch_lm.storage import checkpoint
from switch_lm.text import divisions
from switch_lm.text.divisions import Division
from switch_lm.text.plays import Play
from switch_lm.text.vocabulary import Vocabulary

TEXT = "HAMLET:\nTo be, or not to be.\n\nOPHELIA:\nGood my lord.\n\n" * 200
V = len(Vocabulary.of(TEXT))


def planted(
    *effects: float, scenes: int = 8, characters: int = 250, swing: float = 0.04
) -> tuple[torch.Tensor, Division]:
    """What the first loss is above the second: an effect of each play, and `swing` above or below it in its scenes."""
    part_N = np.repeat(np.arange(len(effects)), scenes * characters)
    scene_N = np.repeat(np.arange(len(effects) * scenes), characters)
    difference_N = torch.tensor(effects)[part_N] + swing * (1 - 2 * torch.tensor(scene_N % 2))
    first = np.array([len(effects) - 1])  # which is predicted by nobody
    names = tuple(f"play {n}" for n in range(len(effects)))
    return difference_N, Division(names, np.concatenate([first, part_N]), np.concatenate([first, scene_N]))


def test_a_planted_difference_is_resolved_with_scenes_as_units_and_others_are_not() -> None:
    """Each scene is off by just `swing`: the error is swing x sqrt(24 / 21 / 8), however many its characters are."""
    difference_N, division = planted(-0.01, -0.2, 0.01)
    result = gains(2.0 + difference_N, torch.full_like(difference_N, 2.0), division, by="play")
    assert [(part.name, part.resolved) for part in result.parts] == [
        ("play 1", True), ("play 0", False), ("play 2", False),
    ]  # fmt: skip
    best, whole = result.parts[0], result.whole
    facts = best.characters, best.scenes, best.loss, best.other_loss, best.difference
    assert facts == pytest.approx((2000, 8, 1.8, 2.0, -0.2))
    half = t_quantile(21, 1 - 0.05 / 3) * 0.04 * math.sqrt(24 / 21 / 8)
    assert best.interval == pytest.approx((-0.2 - half, -0.2 + half), rel=1e-4)
    assert (whole.characters, whole.scenes, result.comparisons) == (6000, 24, 3)
    assert whole.difference == pytest.approx(-0.2 / 3, rel=1e-4)
    assert "A is better in 2 of 3 plays (1 resolved), B in 1 of 3 plays (0 resolved)." in result.lines()
    picture = result.picture("a", "b")
    assert picture.x_names == ("play 1", "play 0", "play 2", "everything")
    assert [(series.label, series.x) for series in picture.series] == [
        ("resolved", (0.0,)), ("not resolved", (1.0, 2.0)), ("everything", (3.0,)),
    ]  # fmt: skip


def test_small_parts_and_all_but_the_largest_speakers_are_the_others() -> None:
    difference_N, division = planted(*np.linspace(0.1, 0.5, 24).tolist(), scenes=1, characters=1000, swing=0.0)
    rows = gains(difference_N, 0 * difference_N, division, by="speaker").parts
    assert [row.name for row in rows] == [*(f"play {n}" for n in range(20)), OTHERS]
    assert (rows[-1].characters, rows[-1].scenes) == (4000, 4) and rows[0].interval is None
    short = Division(division.names, division.part_N[:-1], division.scene_N[:-1])
    rows = gains(difference_N[:-1], 0 * difference_N[:-1], short, by="play").parts
    assert len(rows) == 24 and rows[-1].name == OTHERS and rows[-1].characters == 999


@pytest.fixture
def two_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is taken to be two plays, whose last scenes are the validation split."""
    scenes = [len(TEXT) // 200 * n for n in range(0, 200, 2)]
    known = (Play("one", tuple(scenes[:95])), Play("two", tuple(scenes[95:])))
    monkeypatch.setattr(divisions, "plays_of", lambda _: known)
    monkeypatch.setattr(measured, "FEWEST", 1)


@pytest.mark.usefixtures("two_plays")
@pytest.mark.parametrize("by", ["play", "speaker"])
def test_the_command_compares_the_losses_that_evaluate_gives(
    by: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    uniform = tiny_model(V, context_length=8)
    torch.nn.init.zeros_(uniform.head.weight)
    run = make_run("a", text=TEXT)
    make_run("b", text=TEXT, model=uniform)
    plain = ["--run", "a", "--capacity-factor", "0.5"]
    assert main(plain) == 0
    alone, before = capsys.readouterr().out, json.loads((run / "evaluate.json").read_text())
    assert main([*plain, "--against", "b", *(["--by", by] if by == "speaker" else [])]) == 0
    content, out = json.loads((run / "evaluate.json").read_text()), capsys.readouterr().out
    result = content.pop("by")
    assert content == before and out.startswith(alone)
    assert "A: a, B: b; nats per character; negative means A is better; context length of A 16, of B 8" in out
    names = {"one", "two"} if by == "play" else {"HAMLET (one)", "OPHELIA (one)", "HAMLET (two)", "OPHELIA (two)"}
    assert {part["name"] for part in result["parts"]} == names
    assert result["whole"]["loss"] == pytest.approx(content["results"][0]["loss"], abs=1e-5)
    assert [part["other_loss"] for part in result["parts"]] == pytest.approx([math.log(V)] * len(names), abs=1e-5)
    total = sum(part["characters"] * part["loss"] for part in result["parts"])
    assert total / result["whole"]["characters"] == pytest.approx(result["whole"]["loss"])
    assert result["whole"]["characters"] == content["results"][0]["predictions"]
    assert result["against"]["capacity_factor"] == 0.5 and result["against"]["context_length"] == 8
    assert all((run / f"evaluate_by_{by}.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    assert main([*plain, "--no-baselines", "--json", "other.json"]) == 0 and len(list(run.glob("evaluate_by_*"))) == 2
    assert main([*plain, "--no-baselines"]) == 0 and not list(run.glob("evaluate_by_*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--by", "play"], "--by play needs a second run to compare with; give --against NAME"),
        (
            ["--against", "b", "--capacity-factor", "1", "2"],
            "--capacity-factor has 2 values, and --against compares the runs at one; give one",
        ),
    ],
)
def test_options_that_do_not_go_together_end_with_2(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert says in capsys.readouterr().err


def test_runs_of_other_texts_or_splits_are_refused_before_anything_is_measured(
    make_run: MakeRun, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make_run("a", text=TEXT), make_run("b", text=TEXT)
    assert main(["--run", "a", "--against", "b"]) == 1
    assert "--by play: it needs a text whose plays are known" in capsys.readouterr().err
    request.getfixturevalue("two_plays")
    content: dict[str, Any] = checkpoint_of(tiny_model(V), TEXT, "fp32")
    content["switch_lm"]["config"]["data"]["split"] = "tuning"
    checkpoint.write(content, other / "checkpoints" / "best.ckpt")
    assert main(["--run", "a", "--against", "b"]) == 1
    says = (
        "--against b: the two runs must be validated on the same characters; outputs/runs/a/checkpoints/best.ckpt has"
    )
    message = capsys.readouterr().err
    assert says in message and "data.split=tuning; give another run" in message
    assert not (run / "evaluate.json").exists() and Path("text.txt").exists()
