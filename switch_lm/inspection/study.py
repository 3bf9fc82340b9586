"""The whole inspection of one trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from switch_lm.inspection.ablation import Ablation, ablation
from switch_lm.inspection.atlas import Atlas, atlas
from switch_lm.inspection.counterfactual import Counterfactual, counterfactual
from switch_lm.inspection.drops import Drops, drops
from switch_lm.inspection.history import History, history
from switch_lm.inspection.labels import Label, labels
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.probe import Probe, Reading, Say, read, read_text, silent
from switch_lm.storage.checkpoint import Header
from switch_lm.storage.runs import CHECKPOINTS
from switch_lm.text.vocabulary import Vocabulary

STAGES = 6


@dataclass(frozen=True)
class Inspection:
    """What was found, and the probe that it was found on."""

    name: str
    checkpoint: Path
    vocabulary: Vocabulary
    probe: Probe
    text: Reading  # of the whole split, for the coloured text
    labels: tuple[Label, ...]
    atlas: Atlas
    drops: Drops | None  # None: trained without a capacity
    counterfactual: Counterfactual
    ablation: Ablation
    history: History | None  # None: a checkpoint that is no run's

    @property
    def warnings(self) -> list[str]:
        """What could not be read."""
        return [] if self.history is None else [f"left out of the history: {reason}" for reason in self.history.skipped]

    def findings(self) -> dict[str, list[str]]:
        """In sentences, by question."""
        nothing = ["It was trained without a capacity: nothing is dropped."]
        alone = ["The checkpoint lies in no run's folder: there is no other to compare it with."]
        return {
            "What explains the choice of expert?": self.atlas.findings(),
            "Who is dropped?": nothing if self.drops is None else self.drops.findings(),
            "Was the router right?": self.counterfactual.findings(),
            "Are the experts different?": self.ablation.findings(),
            "When did they specialise?": (
                alone if self.history is None else self.history.findings(self.vocabulary.characters)
            ),
        }


def inspect(
    name: str,
    checkpoint: Path,
    model: SwitchLM,
    header: Header,
    validation_ids: Tensor,
    *,
    context_length: int,
    say: Say = silent,
    stage: Callable[[], None] = lambda: None,
) -> Inspection:
    """`context_length`: the model's, or that of the shortest of several; `stage` is called STAGES times.

    A ValueError for a dense model.
    """

    vocabulary = Vocabulary(header.vocabulary)
    probe = Probe.of(validation_ids, context_length=context_length)
    run = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None
    say("reading the validation split")
    reading, named = read(model, probe), labels(probe, vocabulary)
    text = read_text(model, validation_ids, context_length=context_length)
    stage()
    explained = atlas(reading, named, say=say)
    stage()
    dropped = None
    if model.config.capacity_factor is not None:
        dropped = drops(model, probe, reading, batch_size=header.config["data"]["batch_size"], say=say)
    stage()
    judged = counterfactual(model, probe, say=say)
    stage()
    changed = ablation(model, probe, say=say)
    stage()
    over_time = None if run is None else history(run, probe, say=say)
    stage()
    return Inspection(name, checkpoint, vocabulary, probe, text, named, explained, dropped, judged, changed, over_time)
