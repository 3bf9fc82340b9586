"""Files replaced as a whole: a reader, a kill or a full disk finds the old file or the new one, and never a part."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PART = ".part"  # how the name of an unfinished file ends
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remedy(error: OSError) -> str:
    """What helps against an error of the disk, where that is plain."""
    return "; make room" if error.errno in FULL else ""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """What the block writes takes the place of `path` at its end: written beside it, synced, renamed.

    An error in the block, or an OSError of the disk, leaves `path` as it was and nothing beside it.
    """
    if not path.name:  # as of "."
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace_text(path: Path, text: str) -> None:
    """Makes `text` the whole content of `path`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def remove_parts(folder: Path) -> None:
    """Removes what a killed writer left unfinished. Only for a folder in which nobody else writes."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)
