"""Shows runs in TensorBoard, on this machine only: `python -m switch_lm.dashboard`."""

import argparse
import atexit
import errno
import io
import json
import os
import shutil
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import as_path, whole_number
from switch_lm.commandline.help import command_parser
from switch_lm.commandline.signals import Signalled, caught
from switch_lm.storage.runs import OUTPUTS

HOST, PORT, PORTS_TRIED = "127.0.0.1", 6006, 100
PINNED = ("train/loss", "val/loss", "moe/dropped_share", "moe/balance_loss")  # side by side, in this order
FEW = ("cap", "experts")
MOST_SHOWN = "scalars=100000,images=100"  # of each tag: TensorBoard's own limits thin a long run's curves


def parser() -> argparse.ArgumentParser:
    about = "Shows all runs below a folder in TensorBoard. TensorBoard's options work too; Ctrl-C ends it."
    examples = {"": "all runs", "--outputs outputs/sweeps/capacity_sweep": "a sweep"}
    options = command_parser("dashboard", about, examples, allow_abbrev=False)
    where = f"runs, sweeps or one run (default: {OUTPUTS})"
    options.add_argument("--outputs", type=as_path, default=OUTPUTS, metavar="FOLDER", help=where)
    port = f"the port, which must be free (default: the first free one from {PORT} on; 0: any)"
    number = whole_number(at_least=0, at_most=65535, example=PORT)
    options.add_argument("--port", type=number, metavar="N", help=port)
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
    except _TakenError as error:
        return _say(f"TensorBoard cannot start: {error}", 1)
    except OSError as error:
        return _say(f"TensorBoard cannot listen on {asked.host}: {error.strerror or error}", 1)


def _serve(asked: argparse.Namespace, others: Sequence[str]) -> int:
    from tensorboard import default, main_lib, manager
    from tensorboard.plugins.base_plugin import FlagsError

    outputs: Path = asked.outputs
    if outputs.exists() and not outputs.is_dir():
        return _say(f"{outputs} is not a folder; give the folder of the runs with --outputs FOLDER", 1)
    with redirect_stderr(io.StringIO()):  # that there is no TensorFlow
        main_lib.global_init()
    program: Any = import_module("tensorboard.program")  # the `program` of `tensorboard` is a stand-in
    program._DATA_SERVER_ADVISORY_MESSAGE = ""  # no option leaves it out
    _show_columns_that_differ()
    board = program.TensorBoard(default.get_plugins(), server_class=_server)
    given = ["--logdir", str(outputs), "--host", asked.host]
    given += [] if asked.port is None else ["--port", str(asked.port)]
    try:
        board.configure(["tensorboard", *given, "--samples_per_plugin", MOST_SHOWN, *others])
        if next(outputs.rglob("events.out.tfevents.*"), None) is None:
            _say(f"no run below {outputs} has TensorBoard data yet; the page shows runs once they do", 0)
        return 1 if board.main() else 0
    except FlagsError as error:
        return _say(f"TensorBoard cannot start: {error}", 2)
    finally:
        atexit.unregister(manager.remove_info_file)  # what it removes goes with the folder


def _server(app: Any, flags: argparse.Namespace) -> Any:
    """A server on the port that was given, or else on a free one. OSError if the host cannot be listened on."""
    from tensorboard import program

    app = _opening_pinned(app, f"{flags.path_prefix.rstrip('/')}/")
    for port in range(PORT, PORT + PORTS_TRIED) if flags.port is None else [flags.port]:
        try:
            _require_free(flags.host, port)  # werkzeug, below TensorBoard, would leave the process
            server: Any = program.WerkzeugServer(app, argparse.Namespace(**vars(flags) | {"port": port}))
            server.print_serving_message = partial(_announce, server.get_url())
            return server
        except (_TakenError, program.TensorBoardPortInUseError):
            continue
    taken = f"port {flags.port} is" if flags.port is not None else f"all ports from {PORT} to {port} are"
    raise _TakenError(f"{taken} in use; give another with --port N (0: any free one)")


def _announce(url: str) -> None:
    print(f"TensorBoard: {url} (Ctrl-C ends it)", flush=True)
    if _has_a_screen():
        with suppress(webbrowser.Error, OSError):
            webbrowser.open(url)


def _opening_pinned(app: Callable[..., Any], start: str) -> Callable[..., Any]:
    """The page with nothing asked of it shows the chosen charts first, without smoothing: the address stays short."""
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    view = "?" + urlencode({"pinnedCards": json.dumps(cards), "smoothing": 0})

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] != start or environ.get("QUERY_STRING"):
            return app(environ, start_response)
        start_response("302 Found", [("Location", view), ("Content-Length", "0")])
        return []

    return answer


def _has_a_screen() -> bool:
    """Whether a browser can be opened where the output is read."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(screen) and "SSH_CONNECTION" not in os.environ


def _show_columns_that_differ() -> None:
    """Under HPARAMS, and those of FEW where fewer than two differ: with more, the runs' figures are off the screen.

    TensorBoard looks for what differs only where no run names its columns, and then every scalar is one. It has no
    option for that.
    """
    from tensorboard.plugins.hparams.backend_context import Context

    find = Context._find_experiment_tag

    def find_and_compare(self: Any, content: Any, include_metrics: bool) -> Any:
        if (experiment := find(self, content, include_metrics)) is not None:
            columns = self._compute_hparam_infos(content)
            shown = [column for column in columns if column.differs]
            others = [column for column in columns if column.name in FEW and not column.differs]
            experiment.ClearField("hparam_infos")
            experiment.hparam_infos.extend([*shown, *others[: max(0, 2 - len(shown))]])
        return experiment

    Context._find_experiment_tag = find_and_compare


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
