"""The pure parts of scripts/bench: the order of blocks, paired ratios, and the content of a report."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

# Import as `python scripts/benchmark.py` does.
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    harness: Any = import_module("bench.harness")
    rows: Any = import_module("bench.rows")
    loss: Any = import_module("bench.loss")
    step: Any = import_module("bench.step")
    layer: Any = import_module("bench.layer")


class Clock:
    """A clock that advances only when a block runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, Any]] = []

    def __call__(self) -> float:
        return self.now

    def block(self, name: str, seconds: Callable[[int], float]) -> Any:
        """A contestant whose call on draw n takes `seconds(n)`."""

        def run(draw: int) -> None:
            self.calls.append((name, draw))
            self.now += seconds(draw)

        return harness.Contestant(name, run)

    def timed(self) -> list[tuple[str, Any]]:
        """The calls, without those of the warm-up, whose draws are negative."""
        return [call for call in self.calls if call[1] >= 0]


def run_race(clock: Clock, *contestants: Any, repetitions: int, at_least: float = 0.0) -> Any:
    return harness.race(contestants, lambda n: n, repetitions=repetitions, at_least=at_least, clock=clock)


def failing(error: Exception, *, at: int) -> Any:
    def run(draw: int) -> None:
        if draw >= at:
            raise error

    return harness.Contestant("fails", run)


def test_contestants_take_turns_and_share_the_draw_of_a_repetition() -> None:
    clock = Clock()
    run_race(clock, clock.block("a", lambda n: 1.0), clock.block("b", lambda n: 2.0), repetitions=3)
    assert clock.timed() == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_short_block_is_repeated_on_fresh_draws_until_it_can_be_measured() -> None:
    """The faster one takes 0.5 s per call, so 2 s are 4 calls of each."""
    clock = Clock()
    done = run_race(clock, clock.block("a", lambda n: 0.5), clock.block("b", lambda n: 3.0), repetitions=2, at_least=2)
    assert done.loops == 4
    assert clock.timed() == [(name, n) for first in (0, 4) for name in "ab" for n in range(first, first + 4)]
    assert done.seconds == {"a": [0.5, 0.5], "b": [3.0, 3.0]}


def test_ratios_are_paired_so_that_what_slows_both_cancels() -> None:
    clock = Clock()
    slow = [1.0, 10.0, 100.0, 1000.0, 10000.0]
    ours, theirs = clock.block("ours", lambda n: 3 * slow[n]), clock.block("theirs", lambda n: 2 * slow[n])
    assert run_race(clock, ours, theirs, repetitions=5).ratio("ours", "theirs") == harness.Spread(1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("values", "median", "low", "high"),
    [([7], 7, 7, 7), ([4, 2], 3, 2.5, 3.5), ([5, 1, 4, 2, 3], 3, 2, 4), ([9, 1, 5], 5, 3, 7)],
)
def test_median_and_quartiles(values: list[float], median: float, low: float, high: float) -> None:
    """Linear between the order statistics: the quartile of n values lies at 1 + (n - 1) / 4."""
    assert harness.Spread.of(values) == harness.Spread(median, low, high)


@pytest.mark.parametrize("at", [-3, 1])
def test_a_contestant_that_raises_has_its_error_and_the_others_go_on(at: int) -> None:
    """In the warm-up, or in the second repetition: then its earlier times do not count."""
    clock = Clock()
    error = failing(ValueError("two\nlines"), at=at)
    done = run_race(clock, clock.block("a", lambda n: 1.0), error, clock.block("b", lambda n: 2.0), repetitions=3)
    assert done.errors == {"fails": "ValueError: two lines"}
    assert done.seconds == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert done.ratio("fails", "a") is None and done.ratio("a", "fails") is None


def test_a_contestant_that_cannot_be_made_has_its_error_and_the_others_run() -> None:
    def make(name: str) -> Any:
        raise ImportError(f"no {name}")

    clock = Clock()
    absent = harness.Contestant.made_by(make, "absent", "peer")
    done = run_race(clock, absent, clock.block("a", lambda n: 1.0), repetitions=1)
    assert done.errors == {"absent": "ImportError: no peer"} and list(done.seconds) == ["a"]


def test_no_garbage_is_collected_while_a_block_runs_and_ctrl_c_restores_collection() -> None:
    enabled = []

    def interrupt(draw: int) -> None:
        enabled.append(gc.isenabled())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_race(Clock(), harness.Contestant("a", interrupt), repetitions=1)
    assert enabled == [False] and gc.isenabled() and gc.get_freeze_count() == 0


@pytest.mark.parametrize(("median", "lower", "higher"), [(1.0, True, False), (1.5, True, True), (2.0, False, True)])
def test_a_target_is_met_at_its_limit_and_judged_by_the_median(median: float, lower: bool, higher: bool) -> None:
    figure = harness.Spread(median, 0.0, 9.0)
    assert rows.at_most(figure, 1.5, " x") == rows.Verdict("<= 1.5 x", lower)
    assert rows.at_least(figure, 1.5, " x") == rows.Verdict(">= 1.5 x", higher)
    assert rows.at_most(None, 1.5) is None and rows.at_least(None, 1.5) is None


def test_a_timed_row_is_a_time_or_a_speed_over_that_of_another() -> None:
    """Ours takes 2 s, theirs 6 s: a third of the time, three times the speed."""
    race = harness.Race({"ours": [2.0] * 3, "theirs": [6.0] * 3}, {"absent": "not installed"})
    time, speed, absent = (
        rows.timed("case", name, race, target=target, facts=lambda seconds: {"s": f"{seconds:g}"}, **over)
        for name, target, over in [
            ("ours", 0.3, {"time_over": "theirs"}),
            ("ours", 3.0, {"speed_over": "theirs"}),
            ("absent", 1.0, {"time_over": "theirs"}),
        ]
    )
    assert time.figure.median == pytest.approx(1 / 3) and time.verdict == rows.Verdict("<= 0.3 x", False)
    assert speed.figure.median == 3.0 and speed.verdict == rows.Verdict(">= 3 x", True)
    assert time.facts == speed.facts == {"s": "2"}
    assert absent == rows.Row("case", "absent", error="not installed")


def report(**changes: Any) -> Any:
    figure = harness.Spread(1.25, 1.125, 1.375)
    results = [
        rows.Row("small", "ours", figure, " x", rows.at_most(figure, 1.5, " x"), {"ms": "2.0", "dropped": "0%"}),
        rows.Row("small", "theirs", error="TypeError: a|b"),
        rows.Row("large", "ours", figure, " x", rows.at_most(figure, 1.2, " x")),
    ]
    return rows.Report("layer", {"cores": "2"}, 9, ("A note.",), results, **changes)


def test_the_markdown_has_a_table_per_case_with_every_field_of_a_row() -> None:
    lines = report().markdown().splitlines()
    headings = ["# Benchmark: layer", "## small", "## large", "## Notes"]
    assert [line for line in lines if line.startswith("#")] == headings
    assert "| ours | 1.250 x | 1.125 .. 1.375 | <= 1.5 x | met | ms 2.0; dropped 0% |" in lines
    assert r"| theirs | - |  |  |  | did not run: TypeError: a\|b |" in lines
    assert "| ours | 1.250 x | 1.125 .. 1.375 | <= 1.2 x | **not met** |  |" in lines
    assert "cores 2" in lines and "- A note." in lines
    assert not any("Interrupted" in line for line in lines)


def test_an_interrupted_report_says_so_and_holds_what_was_measured() -> None:
    text = report(interrupted=True).markdown()
    assert "**Interrupted: these are the results up to then.**" in text and "| theirs |" in text


def test_both_files_are_written_and_the_json_holds_the_same(tmp_path: Path) -> None:
    markdown, plain = report().write(tmp_path / "new", "now")
    assert (markdown.name, plain.name) == ("now-layer.md", "now-layer.json")
    assert markdown.read_text() == report().markdown()
    content = json.loads(plain.read_text())
    assert (content["name"], content["repetitions"], content["machine"]) == ("layer", 9, {"cores": "2"})
    first, second, _ = content["rows"]
    assert first["figure"] == {"median": 1.25, "low": 1.125, "high": 1.375}
    assert first["verdict"] == {"target": "<= 1.5 x", "met": True}
    assert (second["figure"], second["error"]) == (None, "TypeError: a|b")


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.250"), (12.3456, "12.346"), (123.4, "123"), (12345.6, "12,346"), (1000.0, "1,000")]
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert rows.number(value) == text


@pytest.mark.parametrize(("case", "name", "over", "target"), [
    ("annotated", "ours, fp32, compiled", "labml-nn", 2.5), ("annotated", "ours, bf16, compiled", "labml-nn", 3.0),
    ("dense", "ours with AdamW, fp32, eager", "nanoGPT's way, eager", 1.0),
    ("dense", "ours with AdamW, fp32, compiled", "nanoGPT's way, compiled", 1.1),
    ("dense", "ours with Muon, fp32, compiled", "nanoGPT's way, compiled", None),
    ("dense", "ours with Muon, bf16, compiled", "nanoGPT's way, eager", 2.5),
    ("default", "ours, fp32, compiled", "ours, fp32, eager", None),
])  # fmt: skip
@pytest.mark.parametrize("bf16", [False, True])
def test_float32_is_always_measured_and_bf16_beside_it_where_there_are_instructions(
    case: str, name: str, over: str, target: float | None, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "fast_bf16", lambda device: (bf16, ""))
    for made in ("ours.vocabulary", "ours.settled", *(f"{m}.training_step" for m in ("ours", "nanogpt", "annotated"))):
        monkeypatch.setattr(f"bench.{made}", lambda *args, **kwargs: "")
    entries = getattr(step, f"{case}_entries")(step.ours.composed(), {"eager": False, "compiled": True})
    of_name = {entry.name: (entry.over, entry.target) for entry in entries}
    assert of_name.get(name) == (None if "bf16" in name and not bf16 else (over, target)) and over in of_name


def test_a_share_is_paired_with_the_product_of_its_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a product's FLOPs in the time of a product, of which the two passes take four fifths; two calls per turn."""
    took, slow = step.ours.Step(None, None, None, clip=1.0, useful=lambda: step.PRODUCT / 2), [1.0, 10.0, 100.0]
    took.passes = [7.0] * 6 + [0.75, 0.85, 7.5, 8.5, 75, 85]  # of the warm-up, which does not count, and of the turns
    fast, product = "ours, fp32, compiled", step.PRODUCTS["fp32"][0]
    done = harness.Race({"ours, fp32, eager": [2 * x for x in slow], fast: slow, product: slow}, {}, loops=2)
    monkeypatch.setattr(step, "race", lambda *args, **kwargs: done)
    monkeypatch.setattr(step.ours, "batches", lambda **sizes: None)
    entries = [step.Entry(harness.Contestant(name, took), fast) for name in ("ours, fp32, eager", fast)]
    *speeds, rate, eager, compiled = step.compare(step.DEFAULT, step.ours.composed(), entries, step.Options(share=True))
    assert [row.figure.median for row in speeds] == [0.5, 1.0]
    assert (rate.name, rate.figure.median) == (product, pytest.approx(step.PRODUCT / 10e9))
    assert (eager.figure, eager.verdict) == (harness.Spread(0.25, 0.25, 0.25), None)
    assert (compiled.figure, compiled.verdict) == (harness.Spread(0.5, 0.5, 0.5), rows.Verdict(">= 0.65", False))
    assert compiled.facts["of forward and backward alone"] == "0.625 (0.625 .. 0.625)"


@pytest.mark.parametrize("skewed", [False, True])
def test_a_layer_is_judged_beside_dense_and_each_peer_beside_it_whatever_the_router(skewed: bool) -> None:
    cell, ours = layer.Cell(**layer.SIZES[0], num_experts=64, precision="fp32", skewed=skewed), "ours, dropless"
    done = harness.Race({"dense": [1.0] * 3, ours: [1.3] * 3, "peer": [1.29] * 3})
    assert layer.row(cell, ours, done, None, {}).verdict == rows.Verdict("<= 1.3 x", True)
    assert layer.row(cell, "peer", done, ours, {}).verdict == rows.Verdict("slower than ours", False)


def ended(*, last: float, steps: int, seconds: float) -> Any:
    return loss.Outcome({}, last, last, steps, seconds)


@pytest.mark.parametrize(("higher", "met"), [(-0.01, True), (0.01, False)])
def test_switch_is_compared_with_its_control_seed_by_seed(higher: float, met: bool) -> None:
    theirs = [ended(last=1.5 + seed / 10, steps=100, seconds=50.0 * (seed + 1)) for seed in range(3)]
    ours = [ended(last=1.5 + seed / 10 + higher, steps=60, seconds=40.0 * (seed + 1)) for seed in range(3)]
    steps, seconds, difference = loss.against("ours", ours, "theirs", theirs)
    assert (steps.figure.median, seconds.figure.low, seconds.figure.high) == (0.6, 0.8, 0.8)
    assert steps.verdict.met and seconds.verdict.met
    assert difference.figure.median == pytest.approx(higher) and difference.verdict.met is met


def test_a_loss_is_reached_when_the_checkpoint_that_holds_it_is_saved() -> None:
    validations, saved = {50: 1.9, 100: 1.55, 150: 1.58}, [loss.Saved(11.0, 1.9), loss.Saved(22.0, 1.55)]
    outcome = loss.outcome(validations, saved, started=5.0, seconds=40.0)
    assert outcome.reached == {1.88: 17.0, 1.60: 17.0}
    assert (outcome.best, outcome.last, outcome.steps) == (1.55, 1.58, 150)
