"""Rows 3 and 15: a disk that is full, and folders that cannot be written."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from conftest import TEXT, MakeRun, checkpoint_of, tiny_model
from processes import PATIENCE, SMALL, Started, command, finished, state

from switch_lm.config.schema import Config
from switch_lm.storage import checkpoint, choice

# Each command that writes a result at its end, and the option that says where.
RESULTS = {
    "evaluate": "--json",
    "check": "--json",
    "inspect": "--out",
    "generate": "--html",
    "report": "--out",
}
WINDOWS = """
import os, runpy, signal, sys
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "termios"))
del signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL, os.getuid, os.sched_getaffinity, os.killpg, os.O_DIRECTORY
def of_files(path, flags, *mode, real=os.open, **where):
    if flags == os.O_RDONLY and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return real(path, flags, *mode, **where)
os.open = of_files
for command in sys.argv[1:]:
    sys.argv = command.split()
    try:
        runpy.run_module(f"switch_lm.{sys.argv[0]}", run_name="__main__")
    except SystemExit as end:
        assert not end.code, command
"""
ALL = [
    f"train {' '.join(SMALL)} trainer.max_steps=20 trainer.val_every=20 name=here",
    "generate --length 5", "evaluate --json there", "inspect", "report outputs/runs/here", "check", "corpus --help",
]  # fmt: skip
SMALL_DISK = "1500k"  # takes the first checkpoints and not all that are asked for


def can_mount() -> bool:
    """Whether a user may mount a file system in a name space of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="no mount name spaces here (unshare -rm)")


def on_a_disk(folder: Path, options: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run whose outputs are a disk of their own; temporary files are on another. Then what lies on the disk."""
    (folder / "disk").mkdir()
    words = command(folder, "outputs=disk", *arguments)
    script = (
        f'mount -t tmpfs -o {options} tmpfs disk && shift 0 && "$@"; code=$?; echo "code $code"; find disk -type f; '
        f'"{sys.executable}" -c "import sys, zipfile; '
        "print([zipfile.ZipFile(p).testzip() for p in __import__('glob').glob('disk/runs/*/checkpoints/*.ckpt')])\""
    )
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *words],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


@pytest.mark.row(3)
@needs_mount
def test_a_full_disk_ends_the_run_with_path_and_size_and_leaves_the_old_checkpoints(tmp_path: Path) -> None:
    many = ("trainer.max_steps=2000", "trainer.val_every=20", "trainer.keep_best=100", "name=full")
    done = on_a_disk(tmp_path, f"size={SMALL_DISK}", *many)
    assert "code 1\n" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "disk/runs/full/checkpoints/" in done.stderr
    assert "MiB) could not be written: No space left on device; make room" in done.stderr
    assert "The last good checkpoint: disk/runs/full/checkpoints/last.ckpt" in done.stderr
    assert ".part" not in done.stdout and "disk/runs/full/checkpoints/best.ckpt" in done.stdout
    intact = done.stdout.splitlines()[-1]
    assert len(intact.split(",")) > 2 and set(intact) <= set("[None, ]")  # each file that is there is whole


@pytest.mark.row(3)
def test_where_a_file_may_not_grow_the_run_ends_with_path_and_size_and_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "outputs/runs/full/checkpoints"
    started = Started(tmp_path, "trainer.max_steps=100000", "trainer.val_every=100000", "name=full")
    started.wait_for_file(checkpoints, "last.ckpt")
    step = state(checkpoints.parent)[-1]
    resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    assert started.process.wait(PATIENCE) == 1
    assert (
        "last.ckpt (0." in started.output and "MiB) could not be written: File too large; make room" in started.output
    )
    assert "Traceback" not in started.output
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert state(checkpoints.parent)[-1] >= step


@pytest.mark.row(15)
@needs_mount
@pytest.mark.long
def test_a_read_only_folder_is_told_before_training(tmp_path: Path) -> None:
    done = on_a_disk(tmp_path, "ro", "name=never")
    assert "code 2\n" in done.stdout and "step" not in done.stdout and "Traceback" not in done.stderr
    assert "outputs=disk: disk/runs/never cannot be written (Read-only file system); make the folder" in done.stderr


@pytest.mark.row(15)
def test_a_sweep_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = finished(tmp_path, "-m", "seed=1,2", "outputs=file", "name=never")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "outputs=file: file/sweeps/never cannot be written (Not a directory); make the folder" in done.stderr


@pytest.mark.row(15)
@pytest.mark.parametrize("blocked", ["outputs", "data.dir"])
def test_a_file_where_a_folder_should_be_is_told_before_training(blocked: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["data.path=null"] if blocked == "data.dir" else []
    done = finished(tmp_path, f"{blocked}=file", "name=never", *arguments)
    assert done.returncode == (1 if blocked == "data.dir" else 2)
    assert "file" in done.stderr and "Traceback" not in done.stderr and "step" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "text.txt"]


def main_of(name: str, make_run: MakeRun) -> Callable[[list[str]], int]:
    """A command on a finished run."""
    folder = make_run("tiny")
    checkpoint.write(checkpoint_of(tiny_model(), TEXT, "fp32") | {"global_step": 1}, folder / "checkpoints/best.ckpt")
    of_run = [str(folder)] if name.startswith("report") else ["--run", "tiny"]
    main: Callable[[list[str]], int] = import_module(f"switch_lm.{name}").main
    return lambda arguments: main(of_run + arguments)


@contextmanager
def no_file_may_grow(to: int) -> Iterator[None]:
    """As on a full disk: a write beyond `to` bytes fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (to, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.row(15)
@pytest.mark.parametrize("name", RESULTS)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    name: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = main_of(name, make_run)
    monkeypatch.setattr("switch_lm.model.transformer.SwitchLM.forward", None)  # nothing is measured
    monkeypatch.setattr("switch_lm.reporting.write.read_records", None)
    assert main([RESULTS[name], "text.txt/below"]) in (1, 2)
    output = capsys.readouterr()
    if name == "check":  # nor is a configuration trained
        assert import_module("switch_lm.check").main(["data.path=text.txt", "--json", "text.txt/below"]) == 2
        assert capsys.readouterr().err == output.err.partition("\n")[2]
    assert "text.txt/below" in output.err and f"give another with {RESULTS[name]} F" in output.err and output.out == ""


@pytest.mark.row(3)
@pytest.mark.parametrize("name", ["evaluate", "check", "generate"])  # of inspect: test_inspect_command.py
def test_a_disk_that_fills_while_a_result_is_written_gives_path_size_and_remedy(
    name: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    main = main_of(name, make_run)
    with no_file_may_grow(to=100):
        assert main([RESULTS[name], "there"]) in (1, 2)
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        message.startswith("there (") and " bytes) could not be written: File too large; make room, or give " in message
    )
    assert not [path for path in Path("there").rglob("*") if path.is_file()]


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL", "EBADF", "EACCES", "EPERM"])
def test_folders_that_can_be_neither_locked_nor_synced_hold_runs_with_one_warning_of_each(
    code: str, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = os.fsync

    def refused(file: int, *_: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(getattr(errno, code), code)
        sync(file)

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(os, "fsync", refused)
    monkeypatch.setattr("switch_lm.storage.files._warned", set(), raising=False)
    for name in ("first", "second"):
        run = choice.choose(replace(config, name=name))
        run.create(config, {}).close()
        assert sorted(p.name for p in run.path.iterdir()) == [
            "checkpoints",
            "config.yaml",
            "hardware.json",
            "start.json",
        ]
    locked, synced = capsys.readouterr().err.splitlines()
    assert f"outputs/runs/first: the folder cannot be locked ({code})" in locked
    assert f"outputs/runs/first: the folder cannot be synced ({code})" in synced


@pytest.mark.parametrize("help_only", [True, pytest.param(False, marks=pytest.mark.long)])
def test_with_nothing_but_what_windows_has_every_command_works(help_only: bool, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    commands = [f"{one.split()[0]} --help" for one in ALL] if help_only else ALL
    words = [sys.executable, "-c", WINDOWS, *commands]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be locked (this system has no flock)") == (not help_only)
