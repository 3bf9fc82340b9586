"""The options of boards, `logger.boards.NAME.KEY`: each board declares its own."""

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from switch_lm.config.keys import Key, keys_of
from switch_lm.config.reading import build
from switch_lm.training.boards.registry import BOARDS, board_class

PREFIX = "logger.boards."


def keys_of_board(name: str) -> dict[str, Key]:
    """A board's options by their whole name; KeyError if there is no such board."""
    return keys_of(board_class(name).Options, f"{PREFIX}{name}.")


def refused(key: str) -> str | None:
    """Why there is no key `logger.boards.NAME.KEY`; None if there is."""
    name = key.removeprefix(PREFIX).partition(".")[0]
    if name not in BOARDS:
        return f"{PREFIX}{name}: no such board; choose among {', '.join(sorted(BOARDS))}"
    known = keys_of_board(name)
    if key in known or key == PREFIX + name:
        return None
    near = get_close_matches(key, known, n=1) or sorted(known)
    return f"{key}: no such key; " + (f"did you mean {' or '.join(near)}?" if near else f"{name} has no options")


def unknown_option(key: str) -> str:
    return refused(key) or f"{key}: no such key"


def with_defaults(boards: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Each board with all of its options, and a line for each thing that is wrong."""
    complete: dict[str, Any] = {}
    wrong: list[str] = []
    for name, given in boards.items():
        if not isinstance(given, Mapping | None):
            wrong.append(f"{PREFIX}{name}={given}: must be a mapping of options; choose a board with logger={name}")
            continue
        if name not in BOARDS:
            wrong.append(unknown_option(PREFIX + name))
            continue
        prefix = f"{PREFIX}{name}."
        typed, lines = build(board_class(name).Options, given or {}, unknown=unknown_option, prefix=prefix)
        wrong += lines
        complete[name] = asdict(typed)
        for key in keys_of_board(name).values():
            value = complete[name][key.name.rpartition(".")[2]]
            if key.rule is not None and value is not None and not key.rule.holds(value):
                wrong.append(f"{key.name}={value}: {key.rule.text}")
    return complete, wrong
