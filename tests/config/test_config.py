"""The shipped configurations are valid, complete and explained; how bad ones are refused: faults/test_configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from switch_lm.config.paths import config_dir
from switch_lm.config.rules import flatten, resolve
from switch_lm.config.schema import KEYS, Config
from switch_lm.model.config import ModelConfig
from switch_lm.routers.options import TopKOptions

CONFIGS = config_dir()


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def test_every_shipped_choice_is_a_valid_configuration() -> None:
    for group in ("model", "optim", "logger", "experiment", "variant"):
        for path in (CONFIGS / group).glob("*.yaml"):
            if path.stem != "base":
                assert composed(f"{group}={path.stem}").trainer.max_steps > 0


def test_the_shipped_values_are_the_schemas_defaults() -> None:
    assert asdict(composed()) == asdict(Config())


def test_the_default_has_a_name_among_the_presets_for_a_time() -> None:
    assert composed("experiment=five_minutes") == composed()


FILES = {
    "": "train",
    "model": "model/switch",
    "data": "data/tiny_shakespeare",
    "optim": "optim/muon",
    "trainer": "trainer/default",
    "logger": "logger/base",
    "health": "health/default",
}


def explained(group: str) -> Iterator[tuple[str, str]]:
    """The keys of a YAML file, each with the comment above it."""
    comment: list[str] = []
    for line in (CONFIGS / f"{FILES[group]}.yaml").read_text().partition("\nhydra:")[0].splitlines():
        if line.startswith("#"):
            comment.append(line.removeprefix("# "))
            continue
        if (key := re.match(r"(\w+):", line)) and key[1] != "defaults":
            yield f"{group}.{key[1]}".strip("."), " ".join(comment)
        comment = []


def test_yaml_shows_every_key_with_the_schemas_meaning() -> None:
    shown = {key: meaning for group in FILES for key, meaning in explained(group)}
    assert shown == {key.name: key.meaning for key in KEYS.values()}


def test_the_router_takes_its_defaults_from_the_same_declaration() -> None:
    assert ModelConfig().rule == TopKOptions(top_k=1)


def test_dense_has_the_same_d_ff_and_dense_wide_the_parameters_of_all_experts() -> None:
    switch, dense, wide = (composed(f"model={name}").model for name in ("switch", "dense", "dense_wide"))
    assert dense.d_ff == switch.d_ff and dense.num_switch_layers == wide.num_switch_layers == 0
    routers = switch.num_switch_layers * switch.d_model * switch.num_experts
    assert wide.num_params(65) == switch.num_params(65) - routers


def test_flatten_gives_dotted_keys() -> None:
    assert flatten({"a": {"b": 1}, "c": None}) == {"a.b": 1, "c": None}


def test_compile_may_be_written_as_a_boolean() -> None:
    assert composed("trainer.compile=false").trainer.compile == "false"
    assert resolve(OmegaConf.structured(composed("trainer.compile=true"))).trainer.compile == "true"
