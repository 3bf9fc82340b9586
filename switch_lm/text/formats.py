"""Which format or encoding the bytes of a file have that are not UTF-8 text, and the command that converts it."""

from __future__ import annotations

from typing import NamedTuple

HEAD_BYTES = 1 << 16  # enough to recognise a format


class Format(NamedTuple):
    """What a file is, in words, and the shell command that makes a text of it, with {file} and {text} to fill in."""

    what: str
    command: str

    def at(self, byte: int, offset: int) -> Format:
        """The same, with the place in the file that shows it."""
        return self._replace(what=f"{self.what} (byte 0x{byte:02x} at offset {offset} is not UTF-8)")


def _unpack(what: str, program: str) -> Format:
    return Format(f"a file packed by {what}", f"{program} -c {{file}} > {{text}}")


_OFFICE = "soffice --headless --convert-to txt:Text {file}"
_PANDOC = "pandoc -t plain {file} -o {text}"
_BINARY = Format("a binary file", "strings {file} > {text}")
_MAGIC = {
    b"\x1f\x8b": _unpack("gzip", "gunzip"),
    b"BZh": _unpack("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": _unpack("xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": _unpack("zstd", "zstd -d"),
    b"\x04\x22\x4d\x18": _unpack("lz4", "lz4 -d"),
    b"\x1f\x9d": _unpack("compress", "uncompress"),
    b"7z\xbc\xaf\x27\x1c": Format("a 7z archive", "7z x -so {file} > {text}"),
    b"Rar!\x1a": Format("a RAR archive", "unrar p -inul {file} > {text}"),
    b"PK\x05\x06": Format("an empty zip archive", "unzip -p {file} > {text}"),
    b"%PDF-": Format("a PDF document", "pdftotext {file} {text}"),
    b"{\\rtf": Format("an RTF document", "pandoc -f rtf -t plain {file} -o {text}"),
    b"\xd0\xcf\x11\xe0": Format("an old Office document", _OFFICE),
    b"\x89PNG": Format("a PNG picture", "tesseract {file} stdout > {text}"),
    b"\xff\xd8\xff": Format("a JPEG picture", "tesseract {file} stdout > {text}"),
    b"SQLite format 3\0": Format("an SQLite database", "sqlite3 {file} .dump > {text}"),
    b"PAR1": Format("a Parquet table", "duckdb -csv -c 'from read_parquet(\"/dev/stdin\")' < {file} > {text}"),
    b"version https://git-lfs.github.com/spec/": Format("a Git LFS pointer, not the text itself", "git lfs pull"),
}
_IN_ZIP = {  # what the first names in a zip archive say
    b"word/": Format("a Word document", _PANDOC),
    b"opendocument.text": Format("an OpenDocument text", _PANDOC),
    b"epub+zip": Format("an EPUB book", _PANDOC),
    b"xl/": Format("an Excel workbook", _OFFICE.replace("txt:Text", "csv")),
}
_BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-32 begins with that of UTF-16
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
# Characters that are frequent in the texts of an encoding. None of them comes from a text in another encoding as often.
_LATIN = "äöüßéèêëàâçñáíóúåøæîôûìòùãõÄÖÜÉ«»¿¡°§–—“”‘’…€„"
_FREQUENT = {
    "LATIN1": _LATIN,
    "WINDOWS-1252": _LATIN,
    "ISO-8859-2": "ąćęłńóśźżáčďéěíňřšťúůýžőűăâîşţ",
    "WINDOWS-1251": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "KOI8-R": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "ISO-8859-7": "αβγδεζηθικλμνξοπρςστυφχψωάέήίόύώ",
    "SHIFT_JIS": "のにはをたがでとしていなかるれまっ、。",
    "EUC-JP": "のにはをたがでとしていなかるれまっ、。",
    "GB18030": "的一是不了在人有我他这来上大个，。",
    "BIG5": "的一是不了在人有我他這來上大個，。",
    "EUC-KR": "이다는에을의가고하지도로를한은기사",
}
_WESTERN = ("LATIN1", "WINDOWS-1252", "ISO-8859-2")  # the first is the answer where nothing decides
_WEIGHT = dict.fromkeys(("SHIFT_JIS", "EUC-JP", "GB18030", "BIG5", "EUC-KR"), 4)  # they have more other characters
_LEAST_FREQUENT = 0.3  # the share of these among a text's characters beyond ASCII
_MOSTLY_ASCII = 0.04  # of UTF-16: the share of characters below 256 and of East Asian punctuation
_DAMAGED = Format("UTF-8 text with damaged characters", "iconv -c -f UTF-8 -t UTF-8 {file} > {text}")
_UNKNOWN = Format("text in an encoding that is not UTF-8", "iconv -f ENCODING -t UTF-8 {file} > {text}")


def other_format(head: bytes, *, whole: bool) -> Format | None:
    """What a file that begins with these bytes is, if it is known not to be UTF-8 text. `whole`: there are no more."""
    for magic, known in _MAGIC.items():
        if head.startswith(magic):
            return known
    if head.startswith(b"PK\x03\x04"):
        inside = (kind for name, kind in _IN_ZIP.items() if name in head)
        return next(inside, Format("a zip archive", "unzip -p {file} > {text}"))
    if head[257:262] == b"ustar":
        return Format("a tar archive", "tar -xOf {file} > {text}")
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return _encoded(name)
    if (wide := _wide(head)) is not None:
        return wide
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if whole or error.reason != "unexpected end of data":
            return encoding_of(head).at(head[error.start], error.start)
    return None


def encoding_of(part: bytes) -> Format:
    """The encoding of a part of a file that is not UTF-8, as far as the part shows it."""
    if (wide := _wide(part)) is not None:
        return wide
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in part)
    if controls > len(part) / 50:
        return _BINARY
    text = part.decode("utf-8", errors="replace")
    if 2 * text.count("\ufffd") < sum(character > "\x7f" for character in text):
        return _DAMAGED
    ascii_letters = sum(byte < 0x80 and chr(byte).isalpha() for byte in part)
    western = sum(byte > 0x7F for byte in part) <= ascii_letters
    shares = {name: _share_of_frequent(part, name) for name in (_WESTERN if western else _FREQUENT)}
    best = max(shares, key=lambda name: shares[name])
    return _encoded(best) if western or shares[best] > _LEAST_FREQUENT else _UNKNOWN


def _share_of_frequent(part: bytes, name: str) -> float:
    """Among the characters beyond ASCII that these bytes have in an encoding; 0 if they are not in that encoding."""
    text = part.decode(name, errors="ignore")
    if len(text.encode(name, errors="ignore")) < len(part) - 8:  # what is at the ends may be a part of a character
        return 0.0
    beyond = [character for character in text if character > "\x7f"]
    return sum(character in _FREQUENT[name] for character in beyond) / max(1, len(beyond)) * _WEIGHT.get(name, 1)


def _wide(part: bytes) -> Format | None:
    """Whether these bytes are UTF-16 or UTF-32 without a byte order mark."""
    for name, width in (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2)):
        try:
            text = part[: len(part) // width * width].decode(name)
        except UnicodeDecodeError:
            continue
        controls = sum(character < " " and character not in "\t\n\v\f\r" for character in text)
        plain = sum(character < "\u0100" or character in "\u3000\u3001\u3002\uff0c" for character in text)
        if controls <= len(text) / 50 and plain > _MOSTLY_ASCII * len(text):
            return _encoded(name)
    return None


def _encoded(name: str) -> Format:
    return Format(f"{name.replace('LATIN1', 'Latin-1')} text", f"iconv -f {name} -t UTF-8 {{file}} > {{text}}")
