"""A UTF-8 file as ids of its characters, piece by piece: the memory is that of the ids, the smallest that hold them."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

if TYPE_CHECKING:  # `--cfg job` needs no numpy
    import numpy as np
    from numpy.typing import NDArray

Ids: TypeAlias = "NDArray[np.integer[Any]]"

PIECE_BYTES = 1 << 18
NUM_CODE_POINTS = 0x110000
BYTE_ORDER_MARK = "\ufeff"
LINE_ENDS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"  # of str.splitlines


class Encoded(NamedTuple):
    """The characters of a text and what is known of them."""

    characters: str  # the distinct ones, in code-point order; the id of a character is its index
    ids: Ids  # (N,)
    start: str  # where a text begins that has no prompt
    sha256: str  # of the bytes, byte order marks included
    byte_order_marks: int  # left out wherever they stand: files that were joined have some inside


class ChangedError(Exception):
    """The file was written to while it was read."""


class NotUTF8Error(Exception):
    """`offset` is that of the first byte that is not UTF-8."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"offset {offset}")
        self.offset = offset


def encode(file: BinaryIO) -> Encoded:
    """The ids of a whole file. It is read twice, once for its characters, so the text itself is never in memory."""
    import numpy as np

    seen_V, num_characters, num_marks = np.zeros(NUM_CODE_POINTS, dtype=np.bool_), 0, 0
    digest, again = hashlib.sha256(), hashlib.sha256()
    for code_N, marks in _code_points(file, digest):
        seen_V[code_N] = True
        num_characters, num_marks = num_characters + len(code_N), num_marks + marks
    codes = np.flatnonzero(seen_V)
    characters = "".join(map(chr, codes.tolist()))
    dtype: Any = np.uint8 if len(codes) <= 2**8 else np.int16 if len(codes) <= 2**15 else np.int32
    id_V, ids, done = np.zeros(NUM_CODE_POINTS, dtype=dtype), np.empty(num_characters, dtype=dtype), 0
    id_V[codes] = np.arange(len(codes))
    for code_N, _ in _code_points(file, again):
        if done + len(code_N) > num_characters:
            raise ChangedError
        ids[done : done + len(code_N)] = id_V[code_N]
        done += len(code_N)
    if again.digest() != digest.digest():
        raise ChangedError
    return Encoded(characters, ids, start_of(ids, characters), digest.hexdigest(), num_marks)


def _code_points(file: BinaryIO, digest: hashlib._Hash) -> Iterator[tuple[NDArray[np.uint32], int]]:
    """The code points of each piece of a file from its beginning, and how many byte order marks were left out."""
    import numpy as np

    decoder, last = codecs.getincrementaldecoder("utf-8")(), False
    file.seek(0)
    while not last:
        piece = file.read(PIECE_BYTES)
        digest.update(piece)
        last = not piece
        try:
            text = decoder.decode(piece, final=last)
        except UnicodeDecodeError as error:
            raise NotUTF8Error(file.tell() - len(error.object) + error.start) from None
        if marks := text.count(BYTE_ORDER_MARK):
            text = text.replace(BYTE_ORDER_MARK, "")
        yield np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), marks


def start_of(ids: Ids, characters: str) -> str:
    """A line break if the text has any; else the most frequent first character of a line, or of all; "" for no text."""
    import numpy as np

    if "\n" in characters or not characters:
        return "\n" if characters else ""
    is_end_V = np.array([character in LINE_ENDS for character in characters])
    count_V, first_V = np.zeros(len(characters), dtype=np.int64), np.zeros(len(characters), dtype=np.int64)
    for at in range(0, len(ids), PIECE_BYTES):
        piece = ids[max(0, at - 1) : at + PIECE_BYTES]
        count_V += np.bincount(ids[at : at + PIECE_BYTES], minlength=len(characters))
        first_V += np.bincount(piece[1:][is_end_V[piece[:-1]]], minlength=len(characters))
    first_V[is_end_V] = 0  # of an empty line
    return characters[int((first_V if first_V.any() else count_V).argmax())]
