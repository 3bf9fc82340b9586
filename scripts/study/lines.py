"""A file of results: a line per finished run, replaced as a whole, so that no kill leaves a part of one."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from switch_lm.storage import provenance
from switch_lm.storage.files import replace_text


class Keyed(Protocol):
    """A run that is asked for."""

    @property
    def key(self) -> tuple[str, ...]:
        """What its line begins with."""


SomeJob = TypeVar("SomeJob", bound=Keyed)


@dataclass(frozen=True)
class Lines:
    """The lines of a file."""

    KEY: ClassVar[tuple[str, ...]]  # the columns that say which run it was
    KIND: ClassVar[tuple[str, ...]]  # those of which a step takes as long where they are equal
    COLUMNS: ClassVar[tuple[str, ...]]  # all of them
    rows: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Nothing if there is no such file."""
        return cls(tuple(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.is_file() else ())

    def add(self, row: Mapping[str, Any], path: Path) -> Self:
        """With one more line, in the file too."""
        line = {name: "" if row.get(name) is None else str(row[name]) for name in self.COLUMNS}
        text = io.StringIO()
        table = csv.DictWriter(text, self.COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows([*self.rows, line])
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text.getvalue())
        return type(self)((*self.rows, line))

    def kind(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[name] for name in self.KIND)

    @cached_property
    def keys(self) -> set[tuple[str, ...]]:
        return {tuple(row[name] for name in self.KEY) for row in self.rows}

    def missing(self, jobs: Iterable[SomeJob]) -> list[SomeJob]:
        return [job for job in jobs if job.key not in self.keys]


def commit_of_code() -> str | None:
    """The commit; "-dirty" only if the code differs from it, and not for results that were added."""
    commit, code = provenance.commit(), ("switch_lm", "configs", "scripts")
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *code], capture_output=True, check=False)
    return commit.removesuffix("-dirty") if commit and same.returncode == 0 else commit
