"""When did the experts specialise, and which routes were still changing at the end? From one run's checkpoints."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, read
from switch_lm.stats.information import SHIFTS, Explained, explained
from switch_lm.storage.checkpoint import CheckpointError, read_model
from switch_lm.storage.checkpoint import read as read_checkpoint
from switch_lm.storage.runs import CHECKPOINTS
from switch_lm.text.classes import CHARACTER

SETTLED = 0.9  # of what the character explains at the end, beyond chance


@dataclass(frozen=True)
class Change:
    """Tokens whose first choice differs from that at an earlier checkpoint; having no expert counts as a choice too."""

    share: float
    chance: float  # for two unrelated routers with the same loads


@dataclass(frozen=True)
class History:
    """N checkpoints of one run in order of step. Experts keep their numbers only within a run."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]  # nats per character, on the probe
    character: tuple[tuple[Explained, ...], ...]  # N x L: how much of the choice the character explains
    since_before: tuple[tuple[Change, ...], ...]  # N - 1 x L: from one checkpoint to the next
    to_last: tuple[tuple[Change, ...], ...]  # N x L: what differs from the last checkpoint
    skipped: tuple[str, ...]  # checkpoints that could not be read, and why

    @property
    def comparisons(self) -> int:
        """How many intervals decide: those of the last checkpoint."""
        return len(self.character[-1])

    def specialised_at(self, layer: int) -> int | None:
        """The step from which on the character explains at least 90% of what it explains at the end, beyond chance.

        None if it explains no more than chance at the end.
        """
        if not self.character[-1][layer].beyond_chance(self.comparisons):
            return None
        beyond = [layers[layer].beyond.mean for layers in self.character]
        below = [n for n, value in enumerate(beyond) if value < SETTLED * beyond[-1]]
        return self.steps[below[-1] + 1 if below else 0]


@dataclass(frozen=True)
class Moment:
    """A checkpoint's step, its first choices on the probe (L, B, S), and its loss."""

    step: int
    expert_LBS: Tensor
    num_experts: int
    loss: float


def history(run: Path, probe: Probe, *, seed: int = 0, shifts: int = SHIFTS, say: Say = silent) -> History:
    """The history of a run folder; a CheckpointError if no checkpoint in it can be read."""
    moments: dict[int, Moment] = {}
    skipped: list[str] = []
    files = (run / CHECKPOINTS).glob("*.ckpt")
    for path in sorted(files, key=lambda path: (not path.stem.startswith("step"), path.name)):
        say(f"history, {path.name}")
        try:
            step = int(read_checkpoint(path)["global_step"])
            if step not in moments:
                reading = read(read_model(path)[0].to(probe.ids_BS.device), probe)
                loss = reading.nll_BS.double().mean().item()
                moments[step] = Moment(step, reading.expert_LBS, reading.num_experts, loss)
        except CheckpointError as error:
            skipped.append(str(error))
    if not moments:
        raise CheckpointError(f"no checkpoint of {run} can be read: {'; '.join(skipped) or 'there is none'}")
    return compared(moments.values(), probe, skipped=skipped, seed=seed, shifts=shifts)


def compared(
    moments: Iterable[Moment], probe: Probe, *, skipped: Iterable[str] = (), seed: int = 0, shifts: int = SHIFTS
) -> History:
    """Puts the moments in order of step, and each beside the one before and the last one."""
    moments = sorted(moments, key=lambda one: one.step)
    return History(
        steps=tuple(one.step for one in moments),
        loss=tuple(one.loss for one in moments),
        character=tuple(
            tuple(
                explained(expert_BS, probe.ids_BS, label=CHARACTER, seed=seed, shifts=shifts)
                for expert_BS in one.expert_LBS
            )
            for one in moments
        ),
        since_before=tuple(changes(one, then) for one, then in pairwise(moments)),
        to_last=tuple(changes(one, moments[-1]) for one in moments),
        skipped=tuple(skipped),
    )


def changes(one: Moment, then: Moment) -> tuple[Change, ...]:
    """Layer by layer."""
    result, choices = list[Change](), one.num_experts + 1  # the last one: no expert
    for pair in zip(one.expert_LBS, then.expert_LBS, strict=True):
        before_E, after_E = (torch.bincount(x.flatten(), minlength=choices).double() / x.numel() for x in pair)
        changed = (pair[0] != pair[1]).double().mean().item()
        result.append(Change(changed, chance=1.0 - (before_E * after_E).sum().item()))
    return tuple(result)
