"""Atomic files: whatever happens, a file has its old or its new content, never a part of it."""

import csv
import errno
import io
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

PART = ".part"  # the suffix of an unfinished file
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_warned = set[str]()


def remedy(error: OSError) -> str:
    """The fix for an error of the disk, if there is an obvious one."""
    return "; make room" if error.errno in FULL else ""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` at the end of the block: it is written beside it, synced and renamed.

    Any error in the block or of the disk leaves `path` as it was and nothing beside it. The disk's names `path`.
    """
    if not path.name:  # such as "."
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(beside)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the new names in it outlast a power cut, where it can be asked for: not on Windows, nor on some shares."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (*FULL, errno.EIO):
            raise
        lost = "a power cut may undo the last changes there, but damages no file"
        warn_once("fsync", f"{folder}: the folder cannot be synced ({error.strerror}); {lost}")


def warn_once(cause: str, message: str) -> None:
    """Prints a warning, once in a process for each cause: a sweep's next run would only repeat it."""
    if cause not in _warned:
        _warned.add(cause)
        print(f"warning: {message}", file=sys.stderr)


def replace_text(path: Path, text: str) -> None:
    """Replaces the content of `path` by `text`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def read_json(path: Path) -> dict[str, Any] | None:
    """None if there is no such file, or if it holds no mapping, such as one that was cut off."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def as_json(content: Any) -> str:
    """The content as JSON, which knows no NaN and no infinity: null stands for them."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def remove_parts(folder: Path) -> None:
    """Removes unfinished files of a killed process. Only for a folder in which no other process writes."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """With a line of headings; a cell is empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


TABLES = ".csv", ".parquet"  # what the name of a table ends in


def write_table(path: Path, table: NDArray[np.void]) -> None:
    """Replaces `path` by a structured array: as Parquet, with pyarrow, if its name ends in .parquet, else as CSV."""
    names = table.dtype.names or ()
    with replacing(path) as file:
        if path.suffix == TABLES[1]:
            from pyarrow import parquet
            from pyarrow import table as of_columns

            parquet.write_table(of_columns({name: table[name] for name in names}), file)
            return
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(zip(*(table[name].astype(str) for name in names), strict=True))
        text.detach()
