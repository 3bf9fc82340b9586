"""Row 16, fuzzed: whatever is asked for, it is a run's description or one message with exit code 2."""

from __future__ import annotations

import logging
import re
import shutil
import string
import sys
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_configuration import described

from switch_lm import train as command
from switch_lm.config.schema import KEYS

GROUPS = {
    "router": ["switch", "topk", "base", "swich"],
    "balance": ["loss", "sign", "none"],
    "model": ["switch", "dense", "annotated", "moe_top2", "swich", "null", ""],
    "optim": ["muon", "adamw", "sgd"],
    "experiment": ["smoke", "short", "one_minute", "small", "nothing", "../train"],
    "variant": ["dense", "top_2"],
}
WORDS = [
    "null", "true", "false", "nan", "inf", "-inf", "-1", "0", "1", "2", "7", "0.5", "1e400", "-1e-3", "9" * 20,
    "auto", "cpu", "cuda", "bf16", "adamw", "x", "../x", "/", "''", '"', "[", "]", "[1,2]", "{a:1}", "{", "${seed}",
    "${seed", "${nope}", "${oc.env:HOME}", "${oc.decode:'['}", "???", "1,2", "range(1,3)", "choice(1,2)", "glob(*)",
    "interval(0,1)",
    "int(1)", "str(1)", "\\", "é", "\x00", "\t", " ", "a b", "a=b", "#", "%s", "${hydra:runtime.cwd}", "00:01:00",
]  # fmt: skip
keys = st.sampled_from([*KEYS, *GROUPS, "hydra.mode", "defaults", "_target_", "model.x", "", "+"])
values = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-10, 2000).map(str),
    st.floats(-2, 2).map(str),
    st.text(string.printable, max_size=8),
)
choices = st.sampled_from(sorted(GROUPS)).flatmap(
    lambda g: st.sampled_from(GROUPS[g]).map(lambda choice: f"{g}={choice}")
)
pairs = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), keys, values)
good = st.sampled_from(
    ["alpha=0.02", "seed=3", "model.num_experts=4", "trainer.max_steps=5", "model.capacity_factor=null"]
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid override in which one character was removed, doubled or replaced."""
    text = draw(good)
    place = draw(st.integers(0, len(text) - 1))
    return text[:place] + draw(st.sampled_from(["", text[place] * 2, *"=.+~@,:'\"[]{}()$ \\"])) + text[place + 1 :]


flags = st.sampled_from(["-m", "--cfg", "--help", "--x", "-", "--", "-c=job", "--info", "--version"])
lists = st.lists(st.one_of(good, pairs, pairs, choices, mutated(), flags), min_size=1, max_size=5)


class Fuzz:
    """Gives the command what hypothesis makes up, in an empty folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(command, "train", described)
        monkeypatch.setattr("switch_lm.reporting.write.write_report", list)  # there is nothing to report
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.log_handlers = list(logging.root.handlers)

    def run(self, examples: int, number: int) -> int:
        """How many lists held."""
        held = 0

        @seed(number)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(arguments=lists)
        def hold(arguments: list[str]) -> None:
            nonlocal held
            self.require_a_run_or_a_message(arguments)
            held += 1

        hold()
        return held

    def require_a_run_or_a_message(self, arguments: list[str]) -> None:
        self.monkeypatch.setattr(sys, "argv", ["train", *arguments])
        try:
            command.main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            logging.root.handlers[:] = self.log_handlers  # Hydra's would write to what the next test has closed
        output = self.capsys.readouterr()
        assert "Traceback" not in output.err + output.out
        left = {path.name for path in self.folder.iterdir()}
        for name in left:  # the next example finds an empty folder again
            shutil.rmtree(self.folder / name)
        if code == 2:
            assert re.search(r"\w", output.err) and len(output.err) < 3000 and left == set(), (output, left)
        else:  # a run, or a sweep, whose jobs may fail
            assert code == 0 or (code == 1 and "FAILED" in output.out), (code, output)
            asked = {value.split("/")[0] for key, _, value in (a.partition("=") for a in arguments) if key == "outputs"}
            assert left <= {"outputs"} | asked, (left, arguments)


@pytest.fixture
def fuzz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fuzz:
    return Fuzz(tmp_path, monkeypatch, capsys)


@pytest.mark.row(16)
def test_thirty_lists_of_overrides_give_a_run_or_a_message(fuzz: Fuzz) -> None:
    assert fuzz.run(30, 0) >= 30


@pytest.mark.row(16)
@pytest.mark.long
@pytest.mark.parametrize("part", range(5))
def test_five_hundred_lists_which_each_day_has_of_its_own_give_a_run_or_a_message(part: int, fuzz: Fuzz) -> None:
    """In four days as many as two thousand; hypothesis prints the one that failed."""
    assert fuzz.run(100, 5 * date.today().toordinal() + part) >= 100
