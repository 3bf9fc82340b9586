"""What is being measured, as a bar on stderr shows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Say(Protocol):
    """Takes what is being measured; `stage` where one of the stages that the bar counts begins."""

    def __call__(self, text: str, *, stage: bool = False) -> None: ...


def silent(text: str, *, stage: bool = False) -> None:
    """Says nothing."""


@contextmanager
def progress(stages: int) -> Iterator[Say]:
    """A bar that counts the stages that are done, and is gone at the end."""
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=stages, completed=-1)

        def say(text: str, *, stage: bool = False) -> None:
            bar.update(task, description=text, advance=int(stage))

        yield say
