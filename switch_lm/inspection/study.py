"""The whole inspection of one trained model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from switch_lm.inspection.ablation import Ablation, ablation
from switch_lm.inspection.atlas import Atlas, atlas
from switch_lm.inspection.cards import Cards, cards
from switch_lm.inspection.counterfactual import Counterfactual, counterfactual
from switch_lm.inspection.drops import Drops, drops
from switch_lm.inspection.experts_per_token import Group, experts_per_token
from switch_lm.inspection.history import History, history
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.pruning import Pruned, pruning
from switch_lm.probe.reading import Probe, Reading, assignments, read, read_text
from switch_lm.storage.checkpoint import Header
from switch_lm.storage.runs import CHECKPOINTS
from switch_lm.text.classes import labels, marks
from switch_lm.text.divisions import Division
from switch_lm.text.vocabulary import Vocabulary

STAGES = 6  # and one more to prune
MOST_COLOURED = 200_000  # characters: each layer takes six or seven bytes of the page for each


@dataclass(frozen=True)
class Inspection:
    """All results for one model, and the probe that they were measured on."""

    name: str
    checkpoint: Path
    vocabulary: Vocabulary
    probe: Probe
    text: Reading  # of the beginning of the split, for the coloured text
    assignments: Sequence[Sequence[tuple[int, int, float]]]  # of each layer, on the probe: character, expert, gate
    cards: Cards
    atlas: Atlas
    per_token: Sequence[Group] | None  # None: every token has as many experts
    drops: Drops | None  # None: trained without a capacity
    counterfactual: Counterfactual
    ablation: Ablation
    history: History | None  # None: a checkpoint outside of a run's folder
    pruned: Sequence[Pruned]  # empty: not asked for
    training_dropped: float | None = None  # share of all choices of its training; None: not known
    letter: str = ""  # "A: " or "B: ", which begins the names of one of two models

    @property
    def blocks(self) -> Sequence[int]:
        """The numbers of the blocks with a Switch layer, which name the layers."""
        return self.text.blocks

    @property
    def warnings(self) -> list[str]:
        """What could not be read."""
        return [] if self.history is None else [f"left out of the history: {reason}" for reason in self.history.skipped]


def inspect(
    name: str,
    checkpoint: Path,
    model: SwitchLM,
    header: Header,
    validation_ids: Tensor,
    *,
    context_length: int,
    divisions: Mapping[str, Division] | None = None,
    prune: bool = False,
    say: Say = silent,
) -> Inspection:
    """`context_length`: the model's, or that of the shortest of several. Begins STAGES stages of `say`.

    `divisions`: of the split by "play" and "speaker", where they are known. ValueError for a dense model.
    `prune`: also `pruning`, whose conditions the model must meet.
    """
    vocabulary = Vocabulary(header.vocabulary)
    probe = Probe.of(validation_ids, context_length=context_length)
    say("reading the validation split", stage=True)
    reading = read(model, probe)
    text = read_text(model, validation_ids[: MOST_COLOURED + 1], context_length=context_length)
    assigned = assignments(model, probe)
    say("cards and atlas", stage=True)
    classes = marks(probe.split_ids, probe.place_BS, vocabulary.characters, divisions or {})
    of_experts = cards(
        assigned, classes, probe, vocabulary.characters, blocks=reading.blocks, num_experts=reading.num_experts
    )
    explained = atlas(
        reading, labels(probe.split_ids, probe.place_BS, vocabulary.characters), num_characters=len(vocabulary), say=say
    )
    per_token = experts_per_token(reading, probe.ids_BS, vocabulary.characters)
    say("drops", stage=True)
    batch_size = header.config["data"]["batch_size"]
    limited = model.router_options.limit(model.config.capacity_factor, training=True) is not None
    dropped = drops(model, probe, batch_size=batch_size, say=say) if limited else None
    say("counterfactual", stage=True)
    judged = counterfactual(model, probe, say=say)
    say("ablation", stage=True)
    changed = ablation(model, probe, say=say)
    say("history", stage=True)
    of_run = checkpoint.parent.name == CHECKPOINTS
    over_time = history(checkpoint.parent.parent, probe, say=say) if of_run else None
    if prune:
        say("pruning", stage=True)
    pruned = pruning(model, probe, say=say) if prune else ()
    results = of_experts, explained, per_token, dropped, judged, changed, over_time, pruned
    return Inspection(name, checkpoint, vocabulary, probe, text, assigned, *results)
