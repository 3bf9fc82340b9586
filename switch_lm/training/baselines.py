"""What a loss is compared with: baselines of counts, and how much of what the model writes is copied."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from switch_lm.generation.sampling import texts
from switch_lm.measure import ngrams
from switch_lm.measure.copied import LENGTH, longest_run, share_copied
from switch_lm.measure.scoring import one_thread
from switch_lm.model.transformer import SwitchLM
from switch_lm.storage.files import as_json, replace_text
from switch_lm.text.corpus import Corpus
from switch_lm.text.splits import Split
from switch_lm.text.vocabulary import Vocabulary

NAMES = {"unigram": "unigram", "bigram": "bigram", "kneser_ney": f"{ngrams.ORDER}-gram Kneser-Ney"}
SKIPPED = f"skipped: over {ngrams.MOST_DISTINCT:,} distinct characters, or {ngrams.MOST_PROBABILITIES:,} probabilities"
NUM_TEXTS, LENGTH_OF_TEXT = 20, 100  # of a sample: written at once, they take a fifth of the time of a long one
FOLDER, FORMAT = "baselines", 1  # beside the texts; of its files


def comparison(model: SwitchLM, corpus: Corpus, split: Split, *, data_dir: Path) -> dict[str, Any]:
    """`baselines` and `copied` for result.json. The model writes some texts, at temperature 1."""
    known, vocabulary = _of_split(corpus, split, data_dir), Vocabulary(corpus.characters, corpus.start)
    held_out = sum(map(len, split.validation))
    length = min(LENGTH_OF_TEXT, held_out)
    number = max(1, min(NUM_TEXTS, held_out // length))  # not more characters than are held out
    with one_thread():
        text_BS = texts(model, vocabulary, length=length, seeds=range(number)).numpy()
    training_ids = split.training_ids(corpus).numpy()
    run = longest_run(text_BS, training_ids).tolist()
    copied = {
        "characters": text_BS.size,
        "longest_run": len(run),
        "longest_run_text": "".join(corpus.characters[i] for i in run),
        "share_of_20_grams": share_copied(text_BS, training_ids),
        "held_out_share_of_20_grams": known["held_out_share_of_20_grams"],
    }
    return {"baselines": known["baselines"], "copied": copied}


def _of_split(corpus: Corpus, split: Split, data_dir: Path) -> dict[str, Any]:
    """What depends on the text and its split alone: computed once and stored, if the folder of the texts takes it."""
    by_split = hashlib.sha256(repr(split).encode()).hexdigest()
    file = data_dir / FOLDER / f"{corpus.sha256[:16]}-{by_split[:16]}.json"
    of = {"format": FORMAT, "text": corpus.sha256, "split": by_split}
    with suppress(OSError, ValueError, TypeError):  # there is none yet, or it is damaged
        stored = dict(json.loads(file.read_text(encoding="utf-8")))
        if of.items() <= stored.items():
            return stored
    training_ids, validation_ids = split.training_ids(corpus).numpy(), split.validation_ids(corpus).numpy()
    content = of | {
        "baselines": ngrams.baselines(training_ids, validation_ids, vocab_size=len(corpus.characters)),
        "held_out_share_of_20_grams": share_copied(validation_ids[None], training_ids),
    }
    with suppress(OSError):
        file.parent.mkdir(exist_ok=True)  # in the folder of the texts, if there is one
        replace_text(file, as_json(content))
    return content


def in_words(content: Mapping[str, Any]) -> str:
    """`comparison` in one line."""
    if (baselines := content["baselines"]) is None:
        losses = SKIPPED
    else:
        losses = ", ".join(f"{name} {baselines[key]['loss']:.2f}" for key, name in NAMES.items()) + " nats"
    return f"{losses}; {copied_in_words(content['copied'])}"


def copied_in_words(copied: Mapping[str, Any]) -> str:
    """The other half of that line."""
    own, held_out = copied["share_of_20_grams"], copied["held_out_share_of_20_grams"]
    if own is None or held_out is None:
        share = f"the sample is too short for strings of {LENGTH} characters"
    else:
        others = f"({held_out:.1%} of held-out text's)"
        share = f"{own:.1%} of a sample's {LENGTH}-character strings are in the training text {others}"
    return f"{share}; the longest copied passage has {copied['longest_run']:,} characters"
