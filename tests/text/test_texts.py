"""A text takes the memory of its ids alone; what is not a text, or not in it, is named with what to do."""

import bz2
import gzip
import hashlib
import lzma
import os
import subprocess
import tracemalloc
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from switch_lm.text import encoding
from switch_lm.text.characters import shell_word
from switch_lm.text.corpus import Corpus, load_corpus
from switch_lm.text.given import CorpusError, TextError, require_text_file
from switch_lm.text.vocabulary import Vocabulary

GERMAN = "Größe und Übermaß: die Fähre läuft über den Fluß.\n" * 9
LATE, QUOTED = " " * 99_999 + GERMAN, GERMAN + "“€”"
ENCODINGS = {
    GERMAN: ("UTF-16", "UTF-32", "Latin-1"),
    "我们在这里，是一个大的问题。他不来了。天空是蓝色的。\n" * 9: ("UTF-16LE", "UTF-16BE", "UTF-32LE", "GB18030"),
    "Привет, мир! Это текст о том, как люди живут.\n" * 9: ("UTF-16LE", "WINDOWS-1251", "KOI8-R"),
    "이것은 한국어 텍스트입니다. 나는 학생이고 매일 공부를 합니다.\n" * 9: ("EUC-KR",),
}
PACKERS = {"gzip": gzip, "bzip2": bz2, "xz": lzma}


def text_of(body: bytes, tmp_path: Path) -> Corpus:
    (tmp_path / "it's").write_bytes(body)
    return load_corpus(data_dir=tmp_path, path=tmp_path / "it's")


@pytest.mark.parametrize(
    ("body", "what", "text"),
    [
        (LATE.encode("latin1"), "Latin-1 text (byte 0xf6 at offset 100001 is not UTF-8)", LATE),
        (QUOTED.encode("cp1252"), "WINDOWS-1252 text", QUOTED),
        *((text.encode(name), f"{name} text", text) for text, names in ENCODINGS.items() for name in names),
        ((GERMAN + "ü").encode()[:-1], "UTF-8 text with damaged characters", GERMAN),
        *((by.compress(GERMAN.encode()), f"a file packed by {name}", GERMAN) for name, by in PACKERS.items()),
        *((b"PK\3\4 word/", "a Word document", None), (b"%PDF-1", "a PDF document", None)),
        *((bytes(257) + b"ustar", "a tar archive", None), (bytes(range(256)) * 9, "a binary file", None)),
    ],
    ids=lambda value: value if value and len(value) < 50 else "",
)
def test_what_is_not_utf_8_is_named_and_the_command_beside_it_converts_it(
    body: bytes, what: str, text: str | None, tmp_path: Path
) -> None:
    with pytest.raises(TextError) as caught:
        text_of(body, tmp_path)
    problem, command = str(caught.value).split("; data.path must name a UTF-8 text file that is not empty; convert it ")
    assert problem.startswith(f"data.path={tmp_path}/it's: {what}") and "\n" not in problem + command
    if text is not None:
        subprocess.run(["bash", "-c", command.removeprefix("with: ")], check=False)  # iconv -c ends with 1
        assert (tmp_path / "it's.txt").read_bytes() == text.encode()


def test_streams_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    for name in ("fifo", "/dev/null", "/dev/stdin", "/dev/fd/1", "-"):
        with pytest.raises(TextError, match=r"can be read only once.* must name a UTF-8 .*cat .*> FILE"):
            require_text_file(Path(name), name="data.path")


@pytest.mark.parametrize(("distinct", "size"), [(256, 1), (257, 2), (2**15, 2), (2**15 + 1, 4)])
def test_ids_are_small_integers(distinct: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "PIECE_BYTES", 1021)  # cuts characters
    expected = "".join(map(chr, [*range(distinct - 1), 0x1F600]))
    corpus = text_of((expected[::-1] * 2).encode(), tmp_path)
    assert corpus.characters == Vocabulary.of(expected).characters == expected
    assert corpus.ids.tolist() == [*reversed(range(distinct))] * 2 and corpus.ids.itemsize == size


def test_reading_a_text_takes_little_more_than_a_byte_per_character(tmp_path: Path) -> None:
    body = b"To be, or not to be." * 500_000 + "\U0001f600".encode()
    tracemalloc.start()
    size = len(text_of(body, tmp_path).ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * size  # 6 MB are there for texts of any length


def test_byte_order_marks_are_left_out_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = text_of(body := "\ufeffone\n\ufefftwo\n".encode(), tmp_path)
    assert (corpus.text(), corpus.sha256) == ("one\ntwo\n", hashlib.sha256(body).hexdigest())
    assert caplog.messages == [f"{corpus.source} has 2 byte order marks (U+FEFF), which are left out"]
    with pytest.raises(CorpusError, match="nothing but byte order marks"):
        text_of(body[:3], tmp_path)


def test_a_text_without_a_newline_starts_with_its_most_frequent_first_character() -> None:
    texts = ["be or\nnot", "tooor to", "a tot", "one\rtwo\rten\r\rof", "one\u2028two\x85ten", "\r\r"]
    assert [Vocabulary.of(text).start for text in texts] == ["\n", "o", "t", "t", "t", "\r"]
    assert [Vocabulary(of_older).start for of_older in ("\n ab", " ab", " .")] == ["\n", "a", " "]


@pytest.mark.parametrize(
    ("known", "prompt", "message"),
    [
        ("aeé", "ae\u0301", "U+0301 COMBINING ACUTE ACCENT at position 2 * 3 characters * near ones are 'é' (U+00E9 *"),
        ("ae\u0301", "é", "'é' (U+00E9 * near ones are 'e' (U+0065 *) followed by U+0301 COMBINING *"),
        ("“”", '"', "* '“' (U+201C LEFT DOUBLE QUOTATION MARK) or '”' (U+201D *"),
        ("a\n", "a\r\n", r"'\r' (U+000D) at position 1 * near ones are '\n' (U+000A)"),
        ("a\n", r"a\na", r"'\\' * write $'...\n...', which *"),
        ("a", "\udcff", "byte 0xff (not a character in this terminal's encoding) at position 0 *"),
        ("".join(map(chr, range(0x4E00, 0x4E00 + 4000))), "€" * 5000, "* 4,000 characters that the model knows"),
    ],
)
def test_an_unknown_character_is_named_with_its_code_point_and_near_ones(known: str, prompt: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Vocabulary(known).encode(prompt)
    assert fnmatchcase(str(caught.value), message) and len(str(caught.value)) < 400


def test_a_suggested_prompt_is_from_the_text_and_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    texts = ["One two, three: four five", "\n  -x [b] it's `so` $(ls)\n", "\1\2\2'\t\\", "é" * 99, "\u2028\u200f" * 9]
    prompts = [text_of(text.encode(), tmp_path).prompt(18) for text in texts]
    assert prompts == ["One two, three:", "-x [b] it's `so`", "\2", "é" * 18, "\u200f"]
    command = f"printf '%s\\0' {' '.join(map(shell_word, [*prompts, *texts]))}"
    printed = subprocess.run(["bash", "-c", command], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert printed.stdout.decode().split("\0")[:-1] == [*prompts, *texts] and "\2" not in command
