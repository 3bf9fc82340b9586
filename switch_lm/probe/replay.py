"""Reads a text again from one block on: what precedes a changed layer need not be computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from switch_lm.measure.scoring import negative_log_likelihood
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.probe import Probe


@dataclass(frozen=True)
class Replay:
    """What reached each block with a Switch layer when the model read the probe with nothing dropped."""

    model: SwitchLM
    probe: Probe
    reached: tuple[tuple[Tensor, ...], ...]  # of each batch, of each Switch layer (B, S, D)

    def nll(self, layer: int) -> Tensor:
        """Nats (B, S) of each target, with the blocks from Switch layer number `layer` on as they are now."""
        with torch.inference_mode():
            logits = [self._from(layer, reached[layer]) for reached in self.reached]
        return negative_log_likelihood(torch.cat(logits), self.probe.target_BS)

    def _from(self, layer: int, x_BSD: Tensor) -> Tensor:
        model, length = self.model, x_BSD.shape[1]
        rotary = model.config.position == "rotary"
        rotation = (model.cos_SW[:length], model.sin_SW[:length]) if rotary else None
        first = list(model.blocks).index(switch_blocks(model)[layer])
        for block in model.blocks[first:]:
            x_BSD, _ = block(x_BSD, rotation=rotation, capacity_factor=None)
        return model.head(model.norm(x_BSD))


def recorded(model: SwitchLM, probe: Probe) -> Replay:
    """Reads the probe once. The model must be in `eval()`."""
    batches = []
    with torch.inference_mode():
        for ids_BS, _ in probe.batches():
            with _inputs(switch_blocks(model)) as seen:
                model(ids_BS, capacity_factor=None)
            batches.append(tuple(seen))
    return Replay(model, probe, tuple(batches))


def switch_blocks(model: SwitchLM) -> list[nn.Module]:
    """The blocks with a Switch layer, in order of depth."""
    return [block for block in model.blocks if isinstance(block.ffn, SwitchFeedForward)]


@contextmanager
def _inputs(blocks: list[nn.Module]) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.register_forward_pre_hook(keep))
        yield seen
