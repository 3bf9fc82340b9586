"""Helpers to compare the ledger of a configuration with what torch counts."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from switch_lm.config.paths import config_dir
from switch_lm.config.rules import resolve
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import Ledger, ledger
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.module import SwitchModule

CONFIGS = config_dir()
VOCABULARY = Vocabulary.of("abcdefghij\n")
ROWS = 3


@cache
def composed(*overrides: str) -> Config:
    """Always the same object, which nobody may change."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def module_of(config: Config, *, training: bool = True) -> SwitchModule:
    module = SwitchModule(config, VOCABULARY, corpus_sha256="", precision="fp32")
    return module.train(training)


def batch(config: Config, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    ids = torch.randint(len(VOCABULARY), (rows, config.model.context_length + 1))
    return ids[:, :-1], ids[:, 1:]


def in_bf16() -> torch.autocast:
    """In which a CPU computes all that a ledger states; in float32 it leaves out most that is padded or masked."""
    return torch.autocast("cpu", torch.bfloat16)


def stated(config: Config, rows: int = ROWS, **how: Any) -> Ledger:
    return ledger(config.model, config.router, vocab_size=len(VOCABULARY), batch_size=rows, **how)


def by_module(counter: FlopCounterMode) -> dict[str, int]:
    """What was counted within each module, by its name, such as blocks.0.ffn."""
    counts = counter.get_flop_counts().items()
    return {name.removeprefix("SwitchLM."): sum(of_op.values()) for name, of_op in counts}
