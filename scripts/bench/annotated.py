"""The annotated implementation's training step at its published setting, from labml_nn's parts."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import ours
from switch_lm.training.data import Batch

# What its experiment.py (which needs torchvision) sets, and its defaults.
D_MODEL, HEADS, D_FF, LAYERS, EXPERTS, CAPACITY_FACTOR, DROPOUT = 128, 4, 256, 6, 4, 1.2, 0.0
ALPHA, GRADIENT_NORM, LEARNING_RATE, WARM_UP = 0.01, 1.0, 1.0, 2000
NOTES = (
    "The annotated implementation: its SwitchTransformer, attention, feed-forward and Noam optimizer as installed; the "
    "embedding, head and step are written here after its experiment.py, which imports torchvision. Its attention calls "
    "labml.tracker.debug, which the current labml no longer has: here that does nothing. Its tracking of scalars is "
    "left out, in its favour.",
)


class Model(nn.Module):
    """Its AutoregressiveModel."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its warnings do not concern us
            self.utils: Any = import_module("labml_nn.transformers.utils")
            self.transformer = transformer()
        self.embedding = nn.Embedding(vocab_size, D_MODEL)
        self.generator = nn.Linear(D_MODEL, vocab_size)

    def forward(self, ids_SB: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (S, B, V) and the sum of its layers' balance losses."""
        mask = self.utils.subsequent_mask(len(ids_SB))
        y_SBD, counts_LE, probs_LE, *_ = self.transformer(self.embedding(ids_SB), mask)
        total_L1 = counts_LE.sum(dim=-1, keepdim=True)
        return self.generator(y_SBD), EXPERTS * (counts_LE / total_L1 * (probs_LE / total_L1)).sum()


def transformer() -> Any:
    tracker: Any = import_module("labml.tracker")
    if not hasattr(tracker, "debug"):
        tracker.debug = lambda *_: None
    switch: Any = import_module("labml_nn.transformers.switch")
    feed_forward = switch.SwitchFeedForward(
        capacity_factor=CAPACITY_FACTOR,
        drop_tokens=True,
        is_scale_prob=True,
        n_experts=EXPERTS,
        expert=switch.FeedForward(D_MODEL, D_FF, DROPOUT),
        d_model=D_MODEL,
    )
    attention = switch.MultiHeadAttention(HEADS, D_MODEL, DROPOUT)
    layer = switch.SwitchTransformerLayer(
        d_model=D_MODEL, attn=attention, feed_forward=feed_forward, dropout_prob=DROPOUT
    )
    return switch.SwitchTransformer(layer, LAYERS)


def training_step(vocab_size: int) -> ours.Step:
    """Its step: loss with the balance loss, backward, clipping, Noam."""
    torch.manual_seed(0)
    model = Model(vocab_size).train()
    noam: Any = import_module("labml_nn.optimizers.noam")
    optimizer = noam.Noam(model.parameters(), lr=LEARNING_RATE, eps=1e-8, warmup=WARM_UP, d_model=D_MODEL)

    def loss(batch: Batch) -> Tensor:
        logits_SBV, balance = model(batch.ids.T)
        return F.cross_entropy(logits_SBV.flatten(0, 1), batch.targets.T.flatten()) + ALPHA * balance

    return ours.Step(model, loss, optimizer, clip=GRADIENT_NORM)
