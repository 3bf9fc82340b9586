"""The options of the optimizers, as plain data, and what a step costs. No torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from switch_lm.config.families import family
from switch_lm.config.keys import BELOW_ONE, POSITIVE, Rule, at_least, key, one_of, within
from switch_lm.config.legs import ARE_LEGS, HOW

Shape = tuple[int, ...]  # of a hidden matrix (two sides), or of a stack of one for each expert (E, and two sides)
NEWTON_SCHULZ_ROUNDS = (3, 2)  # iterations in each round of Muon's orthogonalisation
OR_LR = Rule("must be a positive number, or null for lr", POSITIVE.holds)
NAME_OF_OPTIMIZER = "Which optimizer it is; optim=NAME chooses it with its options."
AVERAGE = re.compile(r"(tail_)?(\d*\.?\d+(?:e-\d+)?)")


def _are_averages(values: list[Any]) -> bool:
    names = [str(value) for value in values]
    matches = [AVERAGE.fullmatch(name) for name in names]
    return all(match is not None and 0 < float(match[2]) < 1 for match in matches) and len(set(names)) == len(names)


AVERAGES = Rule(
    "must hold numbers between 0 and 1, such as [0.99,0.999], or tail_NUMBER, such as [tail_0.25], each once",
    _are_averages,
)


@dataclass
class OptimOptions:
    """The options that every optimizer has. One adds its own, and says what a step costs."""

    states_per_param: ClassVar[int] = 0  # tensors as large as the weights that the optimizer keeps, at least

    name: str = key("", NAME_OF_OPTIMIZER)
    lr: float = key(3e-3, "Learning rate, reached after warmup_steps; in muon, AdamW's.", POSITIVE)
    router_lr: float | None = key(None, "Learning rate of the routers' weights; null: lr.", OR_LR)
    weight_decay: float = key(0.1, "Decoupled weight decay, of matrices only; in muon, AdamW's.", within(0, 10))
    schedule: str = key(
        "linear",
        "linear or cosine (down to min_factor * lr at the last step) or noam (lr is only a factor; Vaswani et "
        "al., eq. 3).",
        one_of("linear", "cosine", "noam"),
    )
    warmup_steps: int = key(20, "Steps of linear rise at the start.", at_least(0))
    min_factor: float = key(0.0, "Where linear and cosine end, as a share of lr.", within(0, 1))
    grad_clip: float = key(1.0, "The gradient is scaled down to this norm.", POSITIVE)
    averages: list[Any] = key(  # noqa: RUF009  it makes a field
        [],
        "Averages of the weights, each validated after the last step: 0.999 is the rate of a moving one, "
        "tail_0.25 the mean over the last quarter of the steps. Each adds a copy of the weights to memory and "
        "checkpoints. Training does not change.",
        AVERAGES,
    )
    on_resume: str = key(
        "rewarm",
        "What resume=NAME does with a higher trainer.max_steps: rewarm (a short rise back to lr, then the schedule "
        "over the new steps) or decay (from the learning rate reached down to min_factor over the new steps).",
        one_of(*HOW),
        changes_result=False,
    )
    legs: list[Any] = key(  # noqa: RUF009  it makes a field
        [],
        "Where the run was trained longer, and how. Written by resume; leave it out.",
        ARE_LEGS,
    )

    def flops_per_step(self, shapes: Iterable[Shape]) -> float:
        """FLOPs in matrix products of one step, on average, of a model whose hidden matrices have these shapes.

        Elementwise work is not counted.
        """
        return 0.0

    def learning_rates(self) -> list[str]:
        """The keys that hold a learning rate: lr, and those that end in _lr and are not null."""
        names = [field.name for field in fields(self) if field.name == "lr" or field.name.endswith("_lr")]
        return [f"optim.{name}" for name in names if getattr(self, name) is not None]


@family("optim", "switch_lm.optim.adamw:AdamWRecipe")
@dataclass
class AdamWOptions(OptimOptions):
    """AdamW on everything (Loshchilov and Hutter 2019)."""

    states_per_param: ClassVar[int] = 2

    name: str = key("adamw", NAME_OF_OPTIMIZER)
    beta1: float = key(0.9, "AdamW's decay of the mean gradient.", BELOW_ONE)
    beta2: float = key(0.95, "AdamW's decay of the mean squared gradient.", BELOW_ONE)


@family("optim", "switch_lm.optim.muon:MuonRecipe")
@dataclass
class MuonOptions(AdamWOptions):
    """Muon on the hidden matrices, AdamW on the rest (Jordan et al. 2024)."""

    states_per_param: ClassVar[int] = 1

    name: str = key("muon", NAME_OF_OPTIMIZER)
    matrix_lr: float = key(0.02, "Muon's learning rate.", POSITIVE)
    matrix_weight_decay: float = key(0.1, "Muon's decoupled weight decay.", within(0, 10))
    momentum: float = key(0.95, "Muon's Nesterov momentum.", BELOW_ONE)
    expert_update_every: int | None = key(
        None,
        "Muon moves each stack of experts in every n-th step only, n times as far, the stacks in turn; momentum takes"
        " in every gradient. Orthogonalising is most of what more experts add to a step. null: 2, and 4 from 32 "
        "experts on.",
        at_least(1),
    )

    def steps_between_moves(self, num_experts: int) -> int:
        """Of a stack of experts: every second step; of 32 and more, whose gradients are thinner, every fourth."""
        if self.expert_update_every is not None:
            return self.expert_update_every
        return 4 if num_experts >= 32 else 2

    def flops_per_step(self, shapes: Iterable[Shape]) -> float:
        """Newton-Schulz iterations on every hidden matrix; of stacks, the mean over the steps between two moves.

        With m the shorter and n the longer side of x, a round of k iterations consists of x x', one product of (m, m)
        with x, and 4 k - 3 products of (m, m): one square per iteration, and three between two iterations.
        """
        flops = 0.0
        for *experts, rows, columns in shapes:
            short, long = sorted((rows, columns))
            rounds = sum(2 * short**2 * long + (4 * iterations - 3) * short**3 for iterations in NEWTON_SCHULZ_ROUNDS)
            flops += 2 * rounds * (experts[0] / self.steps_between_moves(experts[0]) if experts else 1)
        return flops
