"""Commands in processes of their own, each a copy of one that has imported everything: imports take six seconds."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

Done = subprocess.CompletedProcess[str]
# Each request brings its standard streams and a connection. A first copy waits for the second, which is the command.
SERVER = """
import gc, json, os, runpy, signal, socket, sys
import switch_lm.certificate.show, switch_lm.inspection.write, switch_lm.generation.page, switch_lm.reporting.write
import switch_lm.sweep.launchers, switch_lm.sweep.table, switch_lm.training.prepare, switch_lm.training.run
from switch_lm.commandline.signals import SIGNALS

gc.freeze()  # what a copy need not look at stays shared
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
requests = socket.socket(fileno=os.dup(0))
while (request := socket.recv_fds(requests, 1, 4))[0]:
    if os.fork() == 0:
        break
    for number in request[1]:
        os.close(number)
else:
    sys.exit()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
requests.close()
connection = socket.socket(fileno=request[1].pop())
module, arguments, folder, environment, before = json.loads(connection.makefile().readline())
if command := os.fork():
    connection.sendall(f"{command:8}".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    connection.sendall(f"{code}\\n".encode())
    os._exit(0)
connection.close()
for stream, number in enumerate(request[1]):
    os.dup2(number, stream)
    os.close(number)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
sys.argv, sys.orig_argv = [module, *arguments], [sys.executable, "-m", module, *arguments]
if added := [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place not in ["", *sys.path]]:
    sys.path[1:1] = added
    sys.modules.pop("sitecustomize", None)
    import sitecustomize
sys.path[0] = folder
if before is not None:  # as from a terminal: it heeds all signals, whatever the tests ignore, and shows each line
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.stdout.reconfigure(line_buffering=True)
    exec(before, {})
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@cache
def _server() -> socket.socket:
    """What it reads requests from; it ends when that is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
    atexit.register(process.wait)
    atexit.register(ours.close)  # before it waits
    return ours


class Copy:
    """A command that runs: what the tests need of subprocess.Popen."""

    def __init__(self, request: Sequence[object], streams: Sequence[int]) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_server(), [b"+"], [*streams, theirs.fileno()])
        self._connection.sendall(f"{json.dumps(request)}\n".encode())
        self.pid, self.code = int(self._connection.recv(8, socket.MSG_WAITALL)), -1

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.wait() if self._connection.fileno() < 0 or select.select([self._connection], [], [], 0)[0] else None

    def wait(self, timeout: float = 600.0) -> int:
        """Its exit code, minus the number of the signal that ended it."""
        if self._connection.fileno() >= 0:
            with self._connection:
                self._connection.settimeout(timeout)
                self.code = int(self._connection.makefile().readline())
        return self.code


def start(
    module: str, *arguments: str, folder: Path, env: Mapping[str, str] | None = None, streams: Sequence[int],
    before: str | None = None,
) -> Copy:  # fmt: skip
    """As `python -m module arguments` in a folder. `streams`: the numbers of the files of its three standard streams.

    `before`: Python that it runs first, in a session of its own, where it heeds all signals.
    """
    return Copy([module, arguments, str(folder), dict(os.environ if env is None else env), before], streams)


def run(module: str, *arguments: str, folder: Path, env: Mapping[str, str] | None = None, stdout: int = -1) -> Done:
    """As `start`, to its end. `stdout`: a file's number, if not to be captured."""
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        Path(os.devnull).open() as nothing,
    ):
        streams = [nothing.fileno(), out.fileno() if stdout < 0 else stdout, err.fileno()]
        code = start(module, *arguments, folder=folder, env=env, streams=streams).wait()
        out.seek(0), err.seek(0)
        return Done([module, *arguments], code, out.read(), err.read())
