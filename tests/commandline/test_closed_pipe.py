"""A reader that goes away, as with `| head -1`, changes neither what is written to disk nor the exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from copied_process import Done, run
from rich.console import Console
from sweep_runs import SMALL

from switch_lm.commandline.closed_pipe import survive_closed_pipe


def into_a_closed_pipe(folder: Path, *command: str) -> Done:
    read, write = os.pipe()
    os.close(read)
    try:
        return run(*command, folder=folder, stdout=write)
    finally:
        os.close(write)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained into a closed pipe."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 40)
    done = into_a_closed_pipe(folder, "switch_lm.train", *SMALL, "name=run")
    assert done.returncode == 0 and done.stderr == ""
    return folder


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("train --help", "text.txt"),
        ("train --cfg job", "text.txt"),
        ("train name=again", "outputs/runs/again/result.json"),
        ("train -m seed=0,1 name=two", "outputs/sweeps/two/report.html"),
        ("generate --help", "text.txt"),
        ("generate --length 5 --html page.html", "page.html"),
        ("evaluate --json figures.json", "figures.json"),
        ("check --json checks.json", "checks.json"),
        ("inspect --out looked", "looked/inspect.html"),
        ("report run --out compared", "compared/report.html"),
        ("corpus", "text.txt"),
    ],
)
def test_every_command_writes_all_that_was_asked_for_and_ends_with_0(
    command: str, file: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCH_LM_DATA", "text.txt")
    name, *arguments = command.split()
    configuration = SMALL if name == "train" and not {"--help", "--cfg"} & set(arguments) else []
    done = into_a_closed_pipe(folder, f"switch_lm.{name}", *arguments, *configuration)
    assert done.returncode == 0, done.stderr
    assert "BrokenPipe" not in done.stderr and (folder / file).is_file()


@pytest.mark.parametrize("stream", ["ascii", "closed", "full", "none"])
def test_a_stream_that_cannot_take_a_text_loses_that_text_and_nothing_else(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path("/dev/full" if stream == "full" else tmp_path / "printed")
    file = place.open("w", encoding="ascii")
    if stream == "closed":
        file.close()
    monkeypatch.setattr(sys, "stdout", None if stream == "none" else file)
    with survive_closed_pipe():
        print("1 — 2", flush=True)
        Console().print("3 ± 4")
    file.close()
    assert stream != "ascii" or place.read_text() == "1 ? 2\n3 ? 4\n"
    assert len(capsys.readouterr().err.splitlines()) == (stream in ("closed", "full"))  # says so once
