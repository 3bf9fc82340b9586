"""Was the router right? The loss of a token's next character with every expert in place of the chosen one."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from switch_lm.measure.metrics import first_choice
from switch_lm.measure.scoring import negative_log_likelihood
from switch_lm.model.attention import LayerCache
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM, evaluating
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, rewind, switch_layers
from switch_lm.probe.subject import LayerCall, calls, used
from switch_lm.stats.clusters import mean_where
from switch_lm.stats.intervals import Estimate

POSITIONS = 12  # in each window
MOST_TRIED = 64  # experts: of more, as many are drawn to stand for all
SAME = 1e-5  # nats; losses that are closer differ only by rounding
SAME_GATE = 1e-4
HELD, OWN = "the chosen expert's gate", "its own gate"


@dataclass(frozen=True)
class Judgement:
    """One layer's router against all experts that it could have chosen; losses in nats of the next character.

    `gate`: what every expert's output is multiplied by. With the chosen expert's gate, experts differ only by what they
    compute; with its own gate, which is its probability, an expert that was not chosen is nearly silent too.
    The best expert is known in hindsight only: no router could have every gain.
    """

    gate: str
    num_experts: float  # that could replace the first choice; the mean over tokens
    chance: float  # that an expert drawn at random is the best one
    best: Estimate  # share of tokens whose chosen expert had the lowest loss; equal losses share it
    rank: Estimate  # of the chosen expert, 1 is the lowest loss; (num_experts + 1) / 2 by chance
    best_gains: Estimate  # loss of the chosen expert less that of the best one
    best_gains_on_random: Estimate  # mean loss of all experts less that of the best one
    chosen_gains_on_random: Estimate  # mean loss of all experts less that of the chosen one
    without: float  # share of the tokens that had no expert: they are not judged; all figures are NaN if it is 1


@dataclass(frozen=True)
class Counterfactual:
    """Each layer's router, judged with the chosen expert's gate and with each expert's own."""

    held: tuple[Judgement, ...]
    own: tuple[Judgement, ...]
    num_tokens: int  # per layer
    drawn_from: int | None = None  # experts: of these 64 were drawn; None: each token was tried on all

    @property
    def comparisons(self) -> int:
        """How many intervals decide a claim, one of each judgement: the gain on a random expert."""
        return len(self.held) + len(self.own)


def counterfactual(model: SwitchLM, probe: Probe, *, positions: int = POSITIONS, say: Say = silent) -> Counterfactual:
    """Forces every expert on one token of each window at a time, at one layer; later layers route as they then will.

    Nothing before the token changes, and only its own loss is read, so that no expert is judged by what it does to
    others. Of several experts the one with the largest gate is replaced, by any that is not among the others; a token
    without an expert is not judged. Of more than 64 experts as many are drawn, the same for every token.
    """
    num_layers, (B, S), E = len(switch_layers(model)), probe.ids_BS.shape, model.config.num_experts
    order_E = torch.randperm(E, generator=torch.Generator().manual_seed(0))
    drawn_M = order_E[:MOST_TRIED].to(probe.ids_BS.device) if E > MOST_TRIED else None
    chosen_at = sorted({int((i + 0.5) * S / positions) for i in range(positions)})
    trials: list[list[tuple[Tensor, ...]]] = [[] for _ in range(num_layers)]
    cache = model.new_cache()
    with torch.inference_mode(), evaluating(model):
        for t in chosen_at:
            say(f"counterfactual, position {t} of {S}")
            if t > cache[0].length:
                model(probe.ids_BS[:, cache[0].length : t], cache=cache, capacity_factor=None)
            for layer, trial in enumerate(_position(model, probe, cache, drawn_M)):
                trials[layer].append(trial)
    of_layers = [[torch.stack(parts, dim=-1) for parts in zip(*of_layer, strict=True)] for of_layer in trials]
    held, own = (
        tuple(judge(nll[i], chosen_BN=chosen, open_EBN=free, gate=gate) for nll, chosen, free in of_layers)
        for i, gate in enumerate((HELD, OWN))
    )
    return Counterfactual(held, own, num_tokens=B * len(chosen_at), drawn_from=None if drawn_M is None else E)


def _position(
    model: SwitchLM, probe: Probe, cache: list[LayerCache], drawn_M: Tensor | None
) -> Iterator[tuple[Tensor, ...]]:
    """For each layer, the token after those in the cache under each tried expert, in B windows; the cache stays.

    Tried are all E, or the chosen one and then those drawn: R. Losses (2, R, B) with the held gate and with each
    expert's own, which row is the chosen expert (B), and which could replace it (R, B).
    """
    t = cache[0].length
    ids_B1, target_B1 = probe.ids_BS[:, t : t + 1], probe.target_BS[:, t : t + 1]

    def nll_B() -> Tensor:
        logits = model(ids_B1, cache=cache, capacity_factor=None).logits
        rewind(cache, t)
        return negative_log_likelihood(logits, target_B1)[:, 0]

    with calls(model) as seen:
        nll_B()
    for call in seen:
        nll, first, E = [], first_choice(call.routing), call.layer.num_experts
        first_B = first.expert_T.clamp(max=E - 1)  # of a token without an expert any stands there: it is not judged
        open_EB, chosen_B = ~_others_BE(call, first_B).T & (first.number_T > 0), first_B
        tried_RB = torch.arange(E, device=first_B.device)[:, None].expand_as(open_EB)
        if drawn_M is not None:
            tried_RB, chosen_B = torch.cat([first_B[None], drawn_M[:, None].expand(-1, len(first_B))]), first_B * 0
        open_RB = open_EB.gather(0, tried_RB)
        if drawn_M is not None:
            open_RB[1:] &= tried_RB[1:] != first_B  # the chosen one counts once
        for change_RBD in _changes(call, first_B, first.gate_T, tried_RB):
            for change_BD in change_RBD:
                with _added(call.layer, change_BD):
                    nll.append(nll_B())
        yield torch.stack(nll).unflatten(0, (2, -1)), chosen_B, open_RB


def _others_BE(call: LayerCall, first_B: Tensor) -> Tensor:
    """The experts (B, E) that a token has besides its first choice, bool."""
    routing, taken_BE = call.routing, torch.zeros_like(call.routing.scores_TE, dtype=torch.bool)
    real_N = used(routing)
    taken_BE[routing.token_N[real_N], routing.expert_N[real_N]] = True
    return taken_BE.scatter(1, first_B[:, None], False)


def _changes(call: LayerCall, first_B: Tensor, held_B: Tensor, tried_RB: Tensor) -> list[Tensor]:
    """What each tried expert instead of the first choice adds to the layer's output (R, B, D): gate held, and its own.

    Other choices keep their gates.
    """
    y_EBD, row_B = call.every_output_ETD(), torch.arange(len(first_B), device=first_B.device)
    now_BD, y_RBD = held_B[:, None] * y_EBD[first_B, row_B], y_EBD[tried_RB, row_B]
    own_RB = _own_gates_EB(call, first_B, held_B).gather(0, tried_RB)
    return [gate_RB[..., None] * y_RBD - now_BD for gate_RB in (held_B.expand_as(own_RB), own_RB)]


def _own_gates_EB(call: LayerCall, first_B: Tensor, held_B: Tensor) -> Tensor:
    """The gate (E, B) of each expert in place of a token's first choice, by the router's `gates`.

    ValueError if `gates` does not give the gates that the router has used.
    """
    router, routing, scores_BE = call.layer.router, call.routing, call.routing.scores_TE
    others_BK = scores_BE[:, :0]
    if (K := routing.choices_per_token) is not None:
        is_other_BK = routing.expert_TK != first_B[:, None]
        others_BK = scores_BE.gather(1, routing.expert_TK[is_other_BK].view(len(first_B), K - 1))
    first_or_other = (torch.cat([score_B[:, None], others_BK], dim=1) for score_B in scores_BE.T)
    own_EB = torch.stack([router.gates(score_BK)[:, 0] for score_BK in first_or_other])
    chosen_B = own_EB.gather(0, first_B[None])[0]
    if not torch.allclose(chosen_B[held_B != 0], held_B[held_B != 0], atol=SAME_GATE):
        name = type(router).__name__
        raise ValueError(f"{name}.gates does not give the gates that its assign has used: let assign call it")
    return own_EB


def _added(layer: SwitchFeedForward, change_BD: Tensor) -> AbstractContextManager[Any]:
    """Adds `change_BD` to the layer's output, for one token per row."""
    return layer.register_forward_hook(lambda _, inputs, output: (output[0] + change_BD[:, None], output[1]))


def judge(nll_EBN: Tensor, *, chosen_BN: Tensor, open_EBN: Tensor, gate: str) -> Judgement:
    """From the losses of N tokens of B windows under each expert; those not open do not count.

    A token to which no expert is open has none that could be replaced: it is not judged.
    """
    num_open_BN = open_EBN.sum(dim=0)
    judged_BN = num_open_BN > 0
    chosen_nll_BN = nll_EBN.gather(0, chosen_BN[None])[0]
    best_nll_BN = nll_EBN.masked_fill(~open_EBN, torch.inf).amin(dim=0)
    mean_nll_BN = (nll_EBN * open_EBN).sum(dim=0) / num_open_BN
    best_EBN = (nll_EBN <= best_nll_BN + SAME) & open_EBN
    is_best_BN = (chosen_nll_BN <= best_nll_BN + SAME) / best_EBN.sum(dim=0)
    lower_BN = ((nll_EBN < chosen_nll_BN - SAME) & open_EBN).sum(dim=0)
    not_higher_BN = ((nll_EBN <= chosen_nll_BN + SAME) & open_EBN).sum(dim=0)
    rank_BN = (1 + lower_BN + not_higher_BN) / 2  # equal losses share the mean of their ranks

    def over(value_BN: Tensor) -> Estimate:
        return mean_where(value_BN.masked_fill(~judged_BN, 0.0), judged_BN) or Estimate(math.nan, 0)

    num_open_N = num_open_BN[judged_BN].double()
    return Judgement(
        gate,
        num_open_N.mean().item(),
        chance=num_open_N.reciprocal().mean().item(),
        best=over(is_best_BN),
        rank=over(rank_BN),
        best_gains=over(chosen_nll_BN - best_nll_BN),
        best_gains_on_random=over(mean_nll_BN - best_nll_BN),
        chosen_gains_on_random=over(mean_nll_BN - chosen_nll_BN),
        without=1.0 - judged_BN.double().mean().item(),
    )
