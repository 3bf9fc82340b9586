"""Runs a model as training drops, and gives each token of it a place in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from switch_lm.check.subject import Subject, noise
from switch_lm.inspect.drops import Drops, summary
from switch_lm.inspect.probe import Probe, Reading, Say, rewind, silent, switch_layers
from switch_lm.model import SwitchLM
from switch_lm.routing import Routing
from switch_lm.scoring import negative_log_likelihood


def drops(
    model: SwitchLM,
    probe: Probe,
    reading: Reading,
    *,
    batch_size: int,
    capacity_factor: float | None = None,
    seed: int = 0,
    say: Say = silent,
) -> Drops:
    """Runs the model as in training, in whole batches of `batch_size` windows, without dropout, jitter, random drops.

    `capacity_factor`: training's, unless given; a ValueError where there is none. A router that draws its expert takes
    the most probable one.
    """
    capacity_factor = capacity_factor or model.config.capacity_factor
    if capacity_factor is None:
        raise ValueError("trained without a capacity: nothing is dropped; give a capacity_factor to try one")
    batch_size = min(batch_size, len(probe.ids_BS))
    dropped_LBS, cost_BS = costs(model, probe, batch_size, capacity_factor, seed=seed, say=say)
    windows = len(cost_BS)
    return summary(
        dropped_LBS,
        cost_BS,
        ids_BS=probe.ids_BS[:windows],
        nll_BS=reading.nll_BS[:windows],
        num_characters=model.vocab_size,
        capacity_factor=capacity_factor,
        batch_size=batch_size,
        seed=seed,
    )


def costs(
    model: SwitchLM, probe: Probe, batch_size: int, capacity_factor: float, *, seed: int = 0, say: Say = silent
) -> tuple[Tensor, Tensor]:
    """Which tokens each layer drops (L, B, S), and what its own drops add to each token's loss (B, S), in nats.

    Each token is scored a second time with a place in every layer, while all tokens before it stay as they were.
    """
    switch_layers(model)
    dropping = Subject(model, probe.split_ids, batch_size, alpha=0.0).without_noise(selection="argmax")
    batches = [batch for batch in probe.batches(batch_size) if len(batch[0]) == batch_size]
    found = []
    with torch.inference_mode(), noise(seed, probe.ids_BS.device):
        for number, (ids_BS, target_BS) in enumerate(batches):
            say(f"drops, window {number * batch_size} of {len(batches) * batch_size}")
            found.append(_batch(dropping, ids_BS, target_BS, capacity_factor))
    dropped, cost = zip(*found, strict=True)
    return torch.cat(dropped, dim=1), torch.cat(cost)


def _batch(model: SwitchLM, ids_BS: Tensor, target_BS: Tensor, capacity_factor: float) -> tuple[Tensor, Tensor]:
    """Which tokens are dropped (L, B, S), and what their own drops add to their loss (B, S).

    From the last position to the first: keys and values of what stands before are those of the pass with drops. A
    position at which no row has a drop is not read again.
    """
    cache = model.new_cache()
    output = model(ids_BS, cache=cache, capacity_factor=capacity_factor)
    dropped_LBS = torch.stack([_dropped(routing).view_as(ids_BS) for routing in output.routings])
    nll_BS = negative_log_likelihood(output.logits, target_BS)
    placed_BS = nll_BS.clone()
    for t in reversed(dropped_LBS.any(dim=(0, 1)).nonzero().flatten().tolist()):
        rewind(cache, t)
        logits = model(ids_BS[:, t : t + 1], cache=cache, capacity_factor=None).logits
        placed_BS[:, t : t + 1] = negative_log_likelihood(logits, target_BS[:, t : t + 1])
    return dropped_LBS, nll_BS - placed_BS


def _dropped(routing: Routing) -> Tensor:
    """(T,)"""
    return ~(routing.kept_TK & (routing.assigned_TK == routing.expert_TK)).all(dim=1)
