"""Small models, layers, batches and runs for tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from conftest import TEXT
from torch import Tensor

from switch_lm.config.schema import Config, DataConfig, LoggerConfig, OptimConfig, TrainerConfig
from switch_lm.model.config import ModelConfig
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.routing import RoutingRule
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.module import SwitchModule

VOCABULARY = Vocabulary.of(TEXT)
SIZES: dict[str, Any] = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "context_length": 12}
NOISE: dict[str, Any] = {
    "dropout": 0.3,
    "router_jitter": 0.3,
    "router_input_dropout": 0.3,
    "expert_dropout": 0.3,
    "drop_order": "random",
    "selection": "sample",
}
EVERY_QUEUE = [
    RoutingRule(),
    RoutingRule(top_k=2, queue_order="choice"),
    RoutingRule(drop_order="random", capacity_group="sequence"),
    RoutingRule(drop_order="probability", overflow="passthrough"),
    RoutingRule(overflow="reroute"),
]


def model_of(**changes: Any) -> ModelConfig:
    return ModelConfig(**SIZES | {"num_experts": 4, "router_jitter": 0.0, "init_scale": 1.0} | changes)


def short_run(tmp_path: Path) -> Config:
    """A run of two steps, logged at both, without noise."""
    letters = random.Random(0).choices("abcdefgh .", k=4000)
    (tmp_path / "text.txt").write_text("".join(letters))
    return Config(
        model=model_of(),
        data=DataConfig(path=str(tmp_path / "text.txt"), dir=str(tmp_path / "data"), batch_size=8),
        optim=OptimConfig(warmup_steps=0),
        trainer=TrainerConfig(max_steps=2, val_every=1, device="cpu", precision="fp32", compile="false"),
        logger=LoggerConfig(boards={"kept": {}}, log_every=1, sample_length=0, progress="none"),
        name="run",
        outputs=str(tmp_path / "outputs"),
    )


def module_of(**changes: Any) -> SwitchModule:
    """A LightningModule without a trainer; `changes` apply to the configuration, or to its model."""
    torch.manual_seed(0)
    of_config = {key: changes.pop(key) for key in ("alpha", "z_loss", "importance") if key in changes}
    config = Config(model=model_of(**changes), **of_config)
    return SwitchModule(config, VOCABULARY, corpus_sha256="", precision="fp32")


def batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    ids_BS = torch.randint(len(VOCABULARY), (rows, 13), generator=torch.Generator().manual_seed(3))
    return ids_BS[:, :-1], ids_BS[:, 1:]


def layer(num_experts: int = 4, rule: RoutingRule = EVERY_QUEUE[0], **options: Any) -> SwitchFeedForward:
    torch.manual_seed(0)
    options = {"d_model": 8, "d_ff": 12, "router_jitter": 0.0, "init_scale": 1.0} | options
    return SwitchFeedForward(num_experts=num_experts, rule=rule, **options)
