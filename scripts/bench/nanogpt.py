"""A training step in nanoGPT's way: fp32, torch's scaled_dot_product_attention, AdamW on everything."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import ours
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import run_ledger
from switch_lm.model.config import ModelConfig
from switch_lm.training.data import Batch

# nanoGPT, config/train_shakespeare_char.py
LEARNING_RATE, BETAS, WEIGHT_DECAY, GRADIENT_NORM, DEVIATION = 1e-3, (0.9, 0.99), 0.1, 1.0, 0.02
NOTES = (
    "nanoGPT's way: LayerNorm, GELU, learned positions, no biases, tied head, no dropout, fp32, AdamW; written "
    "here at the sizes of model=dense. Ours: rotary positions, RMSNorm, squared ReLU, Muon.",
)


class Block(nn.Module):
    def __init__(self, d_model: int, num_heads: int, d_ff: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_ffn = (nn.LayerNorm(d_model, bias=False) for _ in range(2))
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.ffn = nn.Sequential(nn.Linear(d_model, d_ff, bias=False), nn.GELU(), nn.Linear(d_ff, d_model, bias=False))

    def forward(self, x_BSD: Tensor) -> Tensor:
        B, S, D = x_BSD.shape
        parts = self.qkv(self.norm_attention(x_BSD)).split(D, dim=2)
        q, k, v = (part.view(B, S, self.num_heads, -1).transpose(1, 2) for part in parts)
        y_BHSW = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BSD = x_BSD + self.out(y_BHSW.transpose(1, 2).reshape(B, S, D))
        return x_BSD + self.ffn(self.norm_ffn(x_BSD))


class GPT(nn.Module):
    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.position = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.Sequential(
            *(Block(config.d_model, config.num_heads, config.d_ff) for _ in range(config.num_layers))
        )
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=DEVIATION)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(ids_BS) + self.position.weight[: ids_BS.shape[1]]
        return F.linear(self.norm(self.blocks(x_BSD)), self.embedding.weight)


def training_step(config: Config, *, compiled: bool) -> ours.Step:
    """At the sizes of a dense model of ours, which has as many products."""
    torch.manual_seed(0)
    model = GPT(config.model, vocab_size := len(ours.vocabulary())).train()
    if compiled:
        model.compile()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.ids).flatten(0, 1), batch.targets.flatten())

    work = run_ledger(config, vocab_size=vocab_size)
    return ours.Step(model, loss, optimizer, clip=GRADIENT_NORM, useful=lambda: work.useful_per_step)
