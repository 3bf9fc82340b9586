"""Small models, layers, batches and runs for tests."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from conftest import TEXT, tiny_model
from torch import Tensor

from switch_lm.config.families import FAMILIES
from switch_lm.config.schema import Config, DataConfig, LoggerConfig, TrainerConfig
from switch_lm.model.config import ModelConfig
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.optim.options import MuonOptions
from switch_lm.routers.base import Router
from switch_lm.routers.options import BalanceOptions, RouterOptions, SwitchOptions, TopKOptions
from switch_lm.routers.topk import TopKRouter
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.module import SwitchModule

VOCABULARY = Vocabulary.of(TEXT)
SIZES: dict[str, Any] = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "context_length": 12}
NOISE: dict[str, Any] = {
    "dropout": 0.3,
    "jitter": 0.3,
    "input_dropout": 0.3,
    "expert_dropout": 0.3,
    "drop_order": "random",
    "selection": "sample",
}
EVERY_QUEUE = [
    TopKOptions(top_k=1),
    TopKOptions(top_k=2, queue_order="choice"),
    TopKOptions(top_k=1, drop_order="random", capacity_group="sequence"),
    TopKOptions(top_k=1, drop_order="probability", overflow="passthrough"),
    TopKOptions(top_k=1, overflow="reroute"),
]
OF_ROUTER = {field.name for field in fields(TopKOptions)} - {"name"}


def parts_of(**changes: Any) -> dict[str, Any]:
    """`model`, `router` and `balance` of a small configuration; `changes` are keys of a model or of a router.

    The router is `topk` where `changes` need it, and `switch` otherwise. `balance`: BalanceOptions.
    """
    chosen = {"jitter": 0.0} | {key: changes.pop(key) for key in list(changes) if key in OF_ROUTER}
    balance = changes.pop("balance", BalanceOptions())
    sizes = SIZES | {"num_experts": 4, "init_scale": 1.0} | changes
    return {"model": ModelConfig(**sizes), "router": router_options(**chosen), "balance": balance}


def router_options(**chosen: Any) -> RouterOptions:
    """Those of `topk` if a key or value needs it, of `switch` otherwise."""
    of_switch = chosen.get("top_k", 1) == 1 and chosen.keys() <= {field.name for field in fields(SwitchOptions)}
    return SwitchOptions(**chosen) if of_switch else TopKOptions(**{"top_k": 1} | chosen)


def family(name: str, **changes: Any) -> RouterOptions:
    """The options of a family of routers."""
    options: RouterOptions = FAMILIES["router"][name].options(**changes)
    return options


def noisy(config: Config) -> Config:
    """The same with every kind of noise."""
    of_router = {key: value for key, value in NOISE.items() if key in OF_ROUTER}
    of_model = {key: value for key, value in NOISE.items() if key not in OF_ROUTER}
    return replace(config, model=replace(config.model, **of_model), router=replace(config.router, **of_router))


def lm_of(vocab_size: int, **changes: Any) -> SwitchLM:
    """A small model with new weights."""
    parts = parts_of(**changes)
    return SwitchLM(parts["model"], vocab_size, router=parts["router"], balance=parts["balance"])


def short_run(tmp_path: Path) -> Config:
    """A run of two steps, logged at both, without noise."""
    letters = random.Random(0).choices("abcdefgh .", k=4000)
    (tmp_path / "text.txt").write_text("".join(letters))
    return Config(
        **parts_of(),
        data=DataConfig(path=str(tmp_path / "text.txt"), dir=str(tmp_path / "data"), batch_size=8),
        optim=MuonOptions(warmup_steps=0),
        trainer=TrainerConfig(max_steps=2, val_every=1, device="cpu", precision="fp32", compile="false"),
        logger=LoggerConfig(boards={"kept": {}}, log_every=1, sample_length=0, progress="none"),
        name="run",
        outputs=str(tmp_path / "outputs"),
    )


def module_of(**changes: Any) -> SwitchModule:
    """A LightningModule without a trainer; `changes` apply to the configuration, or to its model."""
    torch.manual_seed(0)
    of_config = {key: changes.pop(key) for key in ("alpha", "z_loss", "importance") if key in changes}
    config = Config(**parts_of(**changes), **of_config)
    return SwitchModule(config, VOCABULARY, corpus_sha256="", precision="fp32")


def batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    ids_BS = torch.randint(len(VOCABULARY), (rows, 13), generator=torch.Generator().manual_seed(3))
    return ids_BS[:, :-1], ids_BS[:, 1:]


def layer(
    num_experts: int = 4, rule: RouterOptions = EVERY_QUEUE[0], balance: BalanceOptions | None = None, **options: Any
) -> SwitchFeedForward:
    """A layer of width 8 whose router has the options `rule`, without jitter unless they state one."""
    torch.manual_seed(0)
    options = {"d_model": 8, "d_ff": 12, "init_scale": 1.0} | options
    router = router_of(rule, num_experts=num_experts, d_model=options["d_model"], balance=balance)
    return SwitchFeedForward(num_experts=num_experts, router=router, **options)


def router_of(
    rule: RouterOptions, *, num_experts: int = 4, d_model: int = 8, balance: BalanceOptions | None = None
) -> Router:
    """A router with the options `rule`; the default jitter counts as none."""
    rule = replace(rule, jitter=0.0) if rule.jitter == RouterOptions().jitter else rule
    return TopKRouter(rule, d_model=d_model, num_experts=num_experts, balance=balance)


def copies(**changes: Any) -> SwitchLM:
    """All experts of a layer are the first one."""
    model = tiny_model(**changes)
    for layer in model.switch_layers:
        for weight in layer.experts.parameters():
            weight.data[:] = weight.data[0].clone()
    return model
