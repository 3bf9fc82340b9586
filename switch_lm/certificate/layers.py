"""Every Switch layer alone, on the input that it has in the model: in training at several capacities, in evaluation."""

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from types import EllipsisType
from typing import Self

import torch
from torch import Tensor

from switch_lm.certificate.leaks import named
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import LayerCall, Subject, calls, largest, noise, seeded, tried, used
from switch_lm.routers.base import Promise
from switch_lm.routers.options import RouterOptions
from switch_lm.routers.oracles import Expected
from switch_lm.routers.routing import Routing

TIE = 1e-5  # of the largest score, between two of them
Factor = float | EllipsisType | None  # ...: as the layer has it


@dataclass(frozen=True)
class Judged:
    """A routing beside what its router's oracle expects; both list assignments, matched by token and selected expert.

    An assignment that the oracle gives to an equal score of the same token, or of the same expert, is not wrong.
    """

    expected: Expected
    place_N: Tensor  # int64; the oracle's entry of each assignment; -1: it has none
    wrong: int  # assignments that the oracle does not make, or makes and which are missing
    tied: bool  # whether equal scores were ordered in another way, so that slots may go to others

    @classmethod
    def of(cls, routing: Routing, expected: Expected) -> Self:
        entries = {choice: n for n, choice in enumerate(zip(expected.token, expected.selected, strict=True))}
        choices, left = _choices(routing), dict(entries)
        place = [-1 if choice is None else left.pop(choice, -1) for choice in choices]
        extra = [choice for choice, n in zip(choices, place, strict=True) if choice is not None and n < 0]
        missing, scores_TE = list(left), expected.scores_TE.tolist()
        near = TIE * largest([expected.scores_TE])

        def equal(one: tuple[int, int], other: tuple[int, int]) -> bool:
            if max(one[0], other[0]) >= len(scores_TE):  # a token that there is not
                return False
            return abs(scores_TE[one[0]][one[1]] - scores_TE[other[0]][other[1]]) <= near

        wrong, tied = 0, False
        for t, e in extra:
            ties = [other for other in missing if (other[0] == t or other[1] == e) and equal((t, e), other)]
            if ties:
                missing.remove(ties[0])
            wrong, tied = wrong + (not ties), tied or bool(ties)
        if routing.choices_per_token is not None:  # of two equal choices of a token either may come first
            made = list(entries)
            tied |= any(0 <= second < first and equal(made[first], made[second]) for first, second in pairwise(place))
        return cls(expected, torch.tensor(place, device=routing.token_N.device), max(wrong, len(missing)), tied)

    def same_expert_N(self, routing: Routing) -> Tensor:
        """Which assignments (N) are the oracle's, and computed by the expert that it names."""
        if not self.expected.assigned:
            return torch.zeros_like(routing.kept_N)
        assigned_N = torch.tensor(self.expected.assigned, device=routing.token_N.device)[self.place_N]
        return (self.place_N >= 0) & (assigned_N == routing.assigned_N)

    def gate_N(self, routing: Routing) -> Tensor:
        """The oracle's gates (N), with gradient; the routing's where the oracle has none."""
        if not self.expected.assigned:
            return routing.gate_N
        return torch.where(self.same_expert_N(routing), self.expected.gate_N[self.place_N], routing.gate_N)


def _choices(routing: Routing) -> list[tuple[int, int] | None]:
    """The token and the selected expert of each entry of the list; None: no assignment."""
    columns = routing.token_N, routing.expert_N, used(routing)
    return [(t, e) if real else None for t, e, real in zip(*(x.tolist() for x in columns), strict=True)]


def selected_by_token(routing: Routing) -> list[list[int]]:
    """The experts that each token selected, in the order of the list."""
    result: list[list[int]] = [[] for _ in range(routing.num_tokens)]
    for choice in _choices(routing):
        if choice is not None:
            result[choice[0]].append(choice[1])
    return result


@dataclass(frozen=True)
class Case(LayerCall):
    """One layer's call under one condition."""

    condition: str
    block: int  # the number of its block: the layer's name
    factor: Factor
    configured: float | None  # the capacity factor that should hold
    quiet: LayerCall  # the same without noise on the router's input
    by_oracle: Judged | None  # the quiet call beside the oracle; None: the router has none

    @property
    def promise(self) -> Promise:
        return promise_of(self)

    @property
    def judged(self) -> Judged:
        assert self.by_oracle is not None
        return self.by_oracle


def promise_of(call: LayerCall) -> Promise:
    """What the router promises of such a call."""
    return call.layer.router.promise(training=call.layer.training, limited=call.capacity is not None)


def by_oracle(call: LayerCall, options: RouterOptions) -> Expected:
    """What the router's oracle makes of a call without noise, from the `options` that are configured."""
    router, (B, S) = call.layer.router, call.x_BSD.shape[:2]
    assert router.oracle is not None and call.ids_BS is not None and call.position_S is not None
    expected: Expected = router.oracle(
        call.x_BSD.flatten(0, 1).float(),
        call.ids_BS.flatten(),
        dict(router.named_parameters()) | dict(router.named_buffers()),
        options,
        position_T=call.position_S.expand(B, S).flatten(),
        capacity=call.capacity,
        num_groups=options.num_groups(B),
        training=call.layer.training,
        drawn=selected_by_token(call.routing) if promise_of(call).draws else None,
    )
    return expected


def run(call: LayerCall, factor: Factor, *, seed: int = 0) -> LayerCall:
    """The layer of a call alone, with equal noise for equal seeds. Whatever it does to its input is lost."""
    with calls(call.layer) as seen, noise(seed, call.x_BSD.device), torch.inference_mode():
        call.layer(call.x_BSD.clone(), ids_BS=call.ids_BS, position_S=call.position_S, capacity_factor=factor)
    return replace(seen[0], x_BSD=call.x_BSD)


def cases_of(subject: Subject) -> list[Case]:
    """In training without dropout and random drops; as validation routes; and one character, as in generation."""
    training, quiet, evaluated = subject.without_noise(jitter=True), subject.without_noise(), deepcopy(subject.model)
    ids_BS, config = subject.few[0], subject.model.config
    limit = subject.limit(config.capacity_factor, training=True)
    in_training, in_evaluation = (training, quiet), (evaluated, evaluated)
    conditions: list[tuple[str, tuple[SwitchLM, SwitchLM], Tensor, Factor, float | None]] = [
        *((named(factor), in_training, ids_BS, factor, factor) for factor in tried(limit)),
        ("as trained", in_training, ids_BS, ..., config.capacity_factor),
        ("evaluation", in_evaluation, ids_BS, ..., config.eval_capacity_factor),
        ("one character", in_evaluation, ids_BS[:1, :1], None, None),
    ]
    result = []
    for condition, (model, without_noise), input_BS, factor, configured in conditions:
        with calls(model) as seen:
            seeded(model, input_BS, seed=0, capacity_factor=factor)
        for block, call, layer in zip(config.switch_blocks, seen, without_noise.switch_layers, strict=True):
            alone, silent = run(call, factor), run(replace(call, layer=layer), factor)
            judged = None if layer.router.oracle is None else judge(silent, subject.model.router_options)
            facts = vars(alone) | {"condition": condition, "block": block, "factor": factor, "configured": configured}
            result.append(Case(**facts, quiet=silent, by_oracle=judged))
    return result


@torch.inference_mode()
def judge(call: LayerCall, options: RouterOptions) -> Judged:
    return Judged.of(call.routing, by_oracle(call, options))


def by_a_loop(
    layer: SwitchFeedForward, x_TD: Tensor, routing: Routing, gate_N: Tensor, *, passes_dropped: bool
) -> Tensor:
    """What the layer should give (T, D), expert by expert over all tokens; with a gradient where inputs have one."""
    y_TD = torch.zeros_like(x_TD) if layer.shared is None else layer.shared(x_TD)
    kept_N = routing.kept_N & used(routing)

    def share_T1(mine_N: Tensor) -> Tensor:
        return gate_N.new_zeros(len(x_TD)).index_add(0, routing.token_N, mine_N * gate_N)[:, None]

    for expert in range(layer.num_experts):
        h_TF = layer.experts.activation(x_TD @ layer.experts.w_in_EDF[expert])
        y_TD = y_TD + share_T1(kept_N & (routing.assigned_N == expert)) * (h_TF @ layer.experts.w_out_EFD[expert])
    return y_TD + share_T1(used(routing) & ~kept_N) * x_TD if passes_dropped else y_TD
