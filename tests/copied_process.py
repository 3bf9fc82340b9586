"""Commands in processes of their own, each a copy of one that has imported everything: imports take six seconds."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

Done = subprocess.CompletedProcess[str]
# Each request brings its standard streams and a connection. A first copy waits for the second, which is the command.
SERVER = """
import gc, json, os, runpy, signal, socket, sys
import switch_lm.certificate.show, switch_lm.inspection.write, switch_lm.generation.page, switch_lm.reporting.write
import switch_lm.sweep.launchers, switch_lm.sweep.table, switch_lm.training.prepare, switch_lm.training.run

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
module, arguments, folder, environment = json.loads(connection.makefile().readline())
if command := os.fork():
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


def run(module: str, *arguments: str, folder: Path, env: Mapping[str, str] | None = None, stdout: int = -1) -> Done:
    """As `python -m module arguments` in a folder. `stdout`: a file's number, if not to be captured."""
    ours, theirs = socket.socketpair()
    request = json.dumps([module, arguments, str(folder), dict(os.environ if env is None else env)])
    with (
        ours,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        Path(os.devnull).open() as nothing,
    ):
        with theirs:
            streams = [nothing.fileno(), out.fileno() if stdout < 0 else stdout, err.fileno(), theirs.fileno()]
            socket.send_fds(_server(), [b"+"], streams)
        ours.settimeout(240)
        ours.sendall(f"{request}\n".encode())
        code = int(ours.makefile().readline())
        out.seek(0), err.seek(0)
        return Done([module, *arguments], code, out.read(), err.read())
