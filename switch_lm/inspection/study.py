"""The whole inspection of one trained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from switch_lm.inspection.ablation import Ablation, ablation
from switch_lm.inspection.atlas import Atlas, atlas, labels
from switch_lm.inspection.counterfactual import Counterfactual, counterfactual
from switch_lm.inspection.drops import Drops, drops
from switch_lm.inspection.experts_per_token import ExpertsPerToken, experts_per_token
from switch_lm.inspection.history import History, history
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, Reading, assignments, read, read_text
from switch_lm.storage.checkpoint import Header
from switch_lm.storage.runs import CHECKPOINTS
from switch_lm.text.vocabulary import Vocabulary

STAGES = 6
MOST_COLOURED = 200_000  # characters: each layer takes six or seven bytes of the page for each
ATLAS, NUMBER, DROPS, ROUTER, EXPERTS, TIME = (
    "What explains the choice of expert?",
    "How many experts does a token get?",
    "Who is dropped?",
    "Was the router right?",
    "Are the experts different?",
    "When did they specialise?",
)


def corrected(comparisons: int) -> str:
    """For the end of a list of findings."""
    return (
        f"± is half of a 95 % interval; what is claimed or bounded is corrected for all {comparisons} comparisons here."
    )


@dataclass(frozen=True)
class Inspection:
    """All results for one model, and the probe that they were measured on."""

    name: str
    checkpoint: Path
    vocabulary: Vocabulary
    probe: Probe
    text: Reading  # of the beginning of the split, for the coloured text
    assignments: Sequence[Sequence[tuple[int, int, float]]]  # of each layer, on the probe: character, expert, gate
    atlas: Atlas
    per_token: ExpertsPerToken | None  # None: every token has as many experts
    drops: Drops | None  # None: trained without a capacity
    counterfactual: Counterfactual
    ablation: Ablation
    history: History | None  # None: a checkpoint outside of a run's folder

    @property
    def blocks(self) -> Sequence[int]:
        """The numbers of the blocks with a Switch layer, which name the layers."""
        return self.text.blocks

    @property
    def warnings(self) -> list[str]:
        """What could not be read."""
        return [] if self.history is None else [f"left out of the history: {reason}" for reason in self.history.skipped]

    def findings(self) -> dict[str, list[str]]:
        """In sentences, by question."""
        nothing = ["It was trained without a capacity: nothing is dropped."]
        alone = ["The checkpoint lies in no run's folder: there is no other to compare it with."]
        return {
            ATLAS: [*self.atlas.findings(self.blocks), corrected(self.atlas.comparisons)],
            **({} if self.per_token is None else {NUMBER: self._per_token(self.per_token)}),
            DROPS: nothing if self.drops is None else self._drops(self.drops),
            ROUTER: self._router(self.counterfactual),
            EXPERTS: [*self.ablation.findings(self.blocks), corrected(self.ablation.comparisons)],
            TIME: alone if self.history is None else self._history(self.history),
        }

    def _router(self, judged: Counterfactual) -> list[str]:
        return judged.findings(self.blocks) + [corrected(judged.comparisons)] * (not judged.alone)

    def _drops(self, drops: Drops) -> list[str]:
        return drops.findings(self.blocks) + [corrected(drops.comparisons)] * (drops.cost is not None)

    def _per_token(self, per_token: ExpertsPerToken) -> list[str]:
        return [*per_token.findings(self.blocks), corrected(per_token.comparisons)]

    def _history(self, history: History) -> list[str]:
        return [*history.findings(self.blocks, self.vocabulary.characters), corrected(history.comparisons)]


def inspect(
    name: str,
    checkpoint: Path,
    model: SwitchLM,
    header: Header,
    validation_ids: Tensor,
    *,
    context_length: int,
    say: Say = silent,
) -> Inspection:
    """`context_length`: the model's, or that of the shortest of several. Begins STAGES stages of `say`.

    A ValueError for a dense model.
    """
    vocabulary = Vocabulary(header.vocabulary)
    probe = Probe.of(validation_ids, context_length=context_length)
    say("reading the validation split", stage=True)
    reading = read(model, probe)
    text = read_text(model, validation_ids[: MOST_COLOURED + 1], context_length=context_length)
    assigned = assignments(model, probe)
    say("atlas", stage=True)
    explained = atlas(reading, labels(probe, vocabulary), num_characters=len(vocabulary), say=say)
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
    return Inspection(
        name, checkpoint, vocabulary, probe, text, assigned, explained, per_token, dropped, judged, changed, over_time
    )
