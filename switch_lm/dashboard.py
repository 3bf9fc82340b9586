"""Shows runs in TensorBoard, on this machine only: `python -m switch_lm.dashboard`."""

import argparse
import atexit
import errno
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import as_path, whole_number
from switch_lm.commandline.help import command_parser
from switch_lm.commandline.signals import Signalled, caught
from switch_lm.storage.runs import OUTPUTS

HOST, PORT, PORTS_TRIED = "127.0.0.1", 6006, 100
MOST_SHOWN = "scalars=100000,images=100"  # of each tag: TensorBoard's own limits thin a long run's curves


def parser() -> argparse.ArgumentParser:
    about = "Shows all runs below a folder in TensorBoard. TensorBoard's options work too; Ctrl-C ends it."
    examples = {"": "all runs", "--outputs outputs/sweeps/capacity_sweep": "a sweep"}
    options = command_parser("dashboard", about, examples, allow_abbrev=False)
    where = f"runs, sweeps or one run (default: {OUTPUTS})"
    options.add_argument("--outputs", type=as_path, default=OUTPUTS, metavar="FOLDER", help=where)
    port = f"the first port to try; if it is taken, the next free one (default: {PORT}; 0: any)"
    number = whole_number(at_least=0, at_most=65535, example=PORT)
    options.add_argument("--port", type=number, default=PORT, metavar="N", help=port)
    options.add_argument("--host", default=HOST, help=f"the address it listens on, without a log-in (default: {HOST})")
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 1 or 2 and one message for what a user can fix, 128 + n for signal n, such as 130 for Ctrl-C."""
    asked, others = parser().parse_known_args(argv)
    try:
        with caught(_leave), _folder_for_notes():
            return _serve(asked, others)
    except ImportError as error:
        return _say(f"TensorBoard cannot be loaded ({error}); install it with: pip install 'tensorboard>=2.21'", 1)
    except OSError as error:
        return _say(f"TensorBoard cannot start on {asked.host}, port {asked.port}: {error.strerror or error}", 1)


def _serve(asked: argparse.Namespace, others: Sequence[str]) -> int:
    from tensorboard import default, main_lib, manager, program
    from tensorboard.plugins.base_plugin import FlagsError

    outputs: Path = asked.outputs
    if outputs.exists() and not outputs.is_dir():
        return _say(f"{outputs} is not a folder; give the folder of the runs with --outputs FOLDER", 1)
    main_lib.global_init()
    board = program.TensorBoard(default.get_plugins(), server_class=_server_on_a_free_port)
    given = ["--logdir", str(outputs), "--host", asked.host, "--port", str(asked.port)]
    try:
        board.configure(["tensorboard", *given, "--samples_per_plugin", MOST_SHOWN, *others])
        if next(outputs.rglob("events.out.tfevents.*"), None) is None:
            _say(f"no run below {outputs} has TensorBoard data yet; the page shows runs once they do", 0)
        return 1 if board.main() else 0
    except FlagsError as error:
        return _say(f"TensorBoard cannot start: {error}", 2)
    finally:
        atexit.unregister(manager.remove_info_file)  # what it removes goes with the folder


def _server_on_a_free_port(app: Any, flags: argparse.Namespace) -> Any:
    """TensorBoard looks for another port only if none was given; OSError if the host cannot be listened on."""
    from tensorboard import program

    for port in range(flags.port, min(flags.port + PORTS_TRIED, 65536)):
        try:
            _require_free(flags.host, port)  # werkzeug, below TensorBoard, would leave the process
            server = program.WerkzeugServer(app, argparse.Namespace(**vars(flags) | {"port": port}))
        except (_TakenError, program.TensorBoardPortInUseError):
            continue
        if port != flags.port:
            print(f"port {flags.port} is taken; using {port}", file=sys.stderr)
        return server
    tried = f"{flags.port} on ({PORTS_TRIED} tried at most)"
    raise program.TensorBoardServerException(f"no free port from {tried}; give another with --port N")


class _TakenError(Exception):
    """Another process listens on the port."""


def _require_free(host: str, port: int) -> None:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    try:
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _TakenError from error
        raise


def _leave(number: int, frame: object) -> NoReturn:
    """TensorBoard would end with 0 at any signal, and its server ignores KeyboardInterrupt."""
    raise Signalled(number)


@contextmanager
def _folder_for_notes() -> Iterator[None]:
    """TensorBoard notes its address in one folder for all users, which fails if another user has made it."""
    before, tempfile.tempdir = tempfile.tempdir, tempfile.mkdtemp(prefix="switch_lm_dashboard_")
    try:
        yield
    finally:
        ours, tempfile.tempdir = tempfile.tempdir, before
        shutil.rmtree(ours, ignore_errors=True)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
