"""The typed schema of a configuration: one dataclass for each folder of configs/, whose files say what keys mean."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from switch_lm.model.config import ModelConfig


@dataclass
class DataConfig:
    path: str | None = None
    dir: str = "data"
    batch_size: int = 32
    num_workers: int = 0


@dataclass
class OptimConfig:
    name: str = "muon"
    lr: float = 3e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    matrix_lr: float = 0.02
    matrix_weight_decay: float = 0.1
    momentum: float = 0.95
    expert_update_every: int | None = None
    schedule: str = "linear"
    warmup_steps: int = 20
    min_factor: float = 0.0
    grad_clip: float = 1.0

    def steps_between_moves(self, num_experts: int) -> int:
        """Of a stack of experts: every second step; of 32 and more, whose gradients are thinner, every fourth."""
        if self.expert_update_every is not None:
            return self.expert_update_every
        return 4 if num_experts >= 32 else 2


@dataclass
class TrainerConfig:
    max_steps: int = 1800
    accumulate: int = 1
    val_every: int = 300
    checkpoint_every: int = 100
    keep_best: int = 1
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    threads: int | None = None
    max_time: str | None = None

    def validates(self, step: int) -> bool:
        """Whether a validation follows step number `step` (from 1)."""
        return step % self.val_every == 0 or step == self.max_steps

    def max_seconds(self) -> float:
        """`max_time`, hours:minutes:seconds; infinity for null, and nan for anything else."""
        if self.max_time is None:
            return math.inf
        match = re.fullmatch(r"(\d{1,5}):([0-5]\d):([0-5]\d)", self.max_time)
        return 3600 * int(match[1]) + 60 * int(match[2]) + int(match[3]) if match else math.nan


@dataclass
class LoggerConfig:
    log_every: int = 10
    sample_prompt: str = "\n"
    sample_length: int = 300
    progress: str = "auto"


@dataclass
class HealthConfig:
    every: int = 50
    max_share: float = 0.75
    checks: int = 3


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    alpha: float = 0.01
    z_loss: float = 0.0
    importance: float = 0.0
    router_alarm: str = "warn"
    seed: int = 0
    name: str | None = None
    resume: str | None = None
    init_from: str | None = None
    outputs: str = "outputs"
