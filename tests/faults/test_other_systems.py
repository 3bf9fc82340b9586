"""Where nothing of POSIX is there but what Windows has too, every command works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE, SMALL, TEXT

WINDOWS = """
import errno, os, runpy, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGQUIT", "SIGPIPE", "SIGTSTP", "pthread_sigmask"):
    delattr(signal, name)
for name in ("getuid", "geteuid", "sched_getaffinity", "getpgrp", "killpg", "getloadavg", "statvfs", "O_DIRECTORY"):
    delattr(os, name)
real = os.open
def of_files(path, flags, *mode, **where):
    if flags == os.O_RDONLY and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return real(path, flags, *mode, **where)
os.open = of_files
for command in sys.argv[1:]:
    sys.argv = command.split()
    try:
        runpy.run_module(f"switch_lm.{sys.argv[0]}", run_name="__main__")
    except SystemExit as end:
        assert not end.code, command
"""
COMMANDS = ("train", "generate", "evaluate", "inspect", "report", "check", "corpus")


@pytest.mark.parametrize(
    "commands",
    [
        [f"{name} --help" for name in COMMANDS],
        pytest.param(
            [
                f"train {' '.join(SMALL)} trainer.max_steps=20 trainer.val_every=20 name=here",
                "generate --length 5 --html sample.html",
                "evaluate --json result.json", "inspect", "report outputs/runs/here", "check --json check.json",
            ],
            marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_without_posix_every_command_works(commands: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, *commands], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    causes = ("cannot be locked (this system has no flock)", "cannot be synced (Permission denied)")
    assert [done.stderr.count(cause) for cause in causes] == [int(len(commands) < len(COMMANDS))] * 2
