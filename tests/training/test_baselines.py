"""At the end of a single run: baselines of counts, and how much of a sample is copied. Computed once for a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from compare import same
from conftest import TEXT, folder_of, tiny_model

from switch_lm.config.schema import Config
from switch_lm.measure import ngrams
from switch_lm.measure.copied import share_copied
from switch_lm.storage import checkpoint
from switch_lm.text.corpus import load_corpus
from switch_lm.text.splits import Split
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.baselines import comparison
from switch_lm.training.start import train


@pytest.fixture
def quick_end() -> None:
    """Nothing is left out."""


def test_a_single_run_has_them_in_its_result_and_in_one_line_and_a_job_has_none(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = train(config, folder=tmp_path / "sweep" / "job")
    assert not {"baselines", "copied"} & job.keys()
    config.logger.progress = "lines"
    result = train(config)
    text = (tmp_path / "text.txt").read_text()
    ids, border = Vocabulary.of(text).encode(text).numpy(), int(0.9 * len(text))
    expected = ngrams.baselines(ids[:border], ids[border:], vocab_size=int(ids.max()) + 1)
    assert result["baselines"] == expected and expected is not None
    assert result["copied"]["held_out_share_of_20_grams"] == share_copied(ids[None, border:], ids[:border])
    assert result["copied"]["characters"] == 100 * ((len(text) - border) // 100)
    assert result["copied"]["longest_run_text"] in text[:border]
    line = f"unigram {expected['unigram']['loss']:.2f}, bigram {expected['bigram']['loss']:.2f}, 5-gram Kneser-Ney"
    assert f"baselines  {line} {expected['kneser_ney']['loss']:.2f} nats; " in capsys.readouterr().out
    assert same(*(checkpoint.read(run / "checkpoints" / "last.ckpt")["state_dict"] for run in
                  (folder_of(config), tmp_path / "sweep" / "job")))  # fmt: skip


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], int]]:
    """A function that compares a tiny model with TEXT, and tells how often its n-grams were counted so far."""
    (tmp_path / "text.txt").write_text(TEXT)
    corpus = load_corpus(data_dir=tmp_path, path=tmp_path / "text.txt")
    count = Mock(side_effect=ngrams.baselines)
    monkeypatch.setattr(ngrams, "baselines", count)

    def compared(split: str = "standard") -> tuple[dict[str, Any], int]:
        one = comparison(tiny_model(), corpus, Split.of(corpus, split=split), data_dir=tmp_path / "data")
        return one, count.call_count

    return compared


def test_they_are_computed_once_for_a_text_and_its_split(
    compare: Callable[..., tuple[dict[str, Any], int]], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    first, _ = compare()
    (file,) = (tmp_path / "data" / "baselines").iterdir()
    assert compare() == (first, 1)
    assert compare("tuning")[1] == 2
    for number, damaged in enumerate(["{", "[]", "{}", json.dumps(json.loads(file.read_text()) | {"format": 0})]):
        file.write_text(damaged)
        assert compare() == (first, 3 + number)
        assert compare() == (first, 3 + number)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_of_texts_that_cannot_be_written_or_is_not_there_changes_nothing(
    there: bool, compare: Callable[..., tuple[dict[str, Any], int]], tmp_path: Path
) -> None:
    if there:
        (tmp_path / "data").write_text("not a folder")
    assert compare()[0] == compare()[0] and compare()[1] == 3
    assert (tmp_path / "data").exists() == there
