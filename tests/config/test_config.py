"""The shipped configurations are valid, complete and explained; how bad ones are refused: faults/test_configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from switch_lm.config.families import FAMILIES
from switch_lm.config.paths import config_dir
from switch_lm.config.rules import flatten, resolve
from switch_lm.config.schema import KEYS, Config
from switch_lm.optim.options import AdamWOptions, MuonOptions
from switch_lm.routers.options import BalanceOptions, SwitchOptions, TopKOptions

CONFIGS = config_dir()


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def test_every_shipped_choice_is_a_valid_configuration() -> None:
    for group in ("router", "balance", "model", "optim", "logger", "experiment", "variant"):
        for path in (CONFIGS / group).glob("*.yaml"):
            if path.stem != "base":
                assert composed(f"{group}={path.stem}").trainer.max_steps > 0


@pytest.mark.parametrize("group", FAMILIES)
def test_every_family_has_a_file_of_its_name_with_the_defaults_of_its_options(group: str) -> None:
    ours = {name: family for name, family in FAMILIES[group].items() if isinstance(family.code, str)}  # no plugin's
    assert len(ours) >= 2
    for name, family in ours.items():
        assert getattr(composed(f"{group}={name}"), group) == family.options()


@pytest.mark.parametrize("name", ["loss", "sign", "none"])
def test_every_balance_has_the_same_keys(name: str) -> None:
    assert composed(f"balance={name}").balance == BalanceOptions(name=name)


@pytest.mark.parametrize("recipe", ["short", "small", "small_dense", "smoke"])
def test_a_recipe_may_set_keys_of_an_optimizer_that_is_replaced(recipe: str) -> None:
    """`optim.matrix_lr` and others, which AdamW does not have, are left out; what both have stays."""
    config, plain = composed(f"experiment={recipe}", "optim=adamw"), composed(f"experiment={recipe}")
    assert type(config.optim) is AdamWOptions and type(plain.optim) is MuonOptions
    assert (config.optim.lr, config.optim.warmup_steps) == (plain.optim.lr, plain.optim.warmup_steps)
    assert config.model == plain.model


@pytest.mark.parametrize("variant", ["top2_2.0", "top2_2.5"])
def test_a_variant_chooses_the_router_that_it_needs(variant: str) -> None:
    assert composed(f"variant={variant}").router == TopKOptions(top_k=2)


def test_the_shipped_values_are_the_schemas_defaults() -> None:
    assert asdict(composed()) == asdict(Config())


# The files that show the keys of a group; a family's file includes that of the families that it builds on.
FILES = {
    "": "train",
    "router": " ".join(f"router/{name}" for name in ("base", *FAMILIES["router"])),
    "balance": "balance/loss",
    "model": "model/switch",
    "data": "data/tiny_shakespeare",
    "optim": "optim/base optim/adamw optim/muon",
    "trainer": "trainer/default",
    "logger": "logger/base",
    "health": "health/default",
}


def explained(group: str) -> Iterator[tuple[str, str]]:
    """The keys of a group's YAML files, each with the comment above it."""
    for file in FILES[group].split():
        comment: list[str] = []
        for line in (CONFIGS / f"{file}.yaml").read_text().partition("\nhydra:")[0].splitlines():
            if line.startswith("#"):
                comment.append(line.removeprefix("# "))
                continue
            if (key := re.match(r"(\w+):", line)) and key[1] != "defaults":
                yield f"{group}.{key[1]}".strip("."), " ".join(comment)
            comment = []


def test_yaml_shows_every_key_with_the_schemas_meaning() -> None:
    shown = {key: meaning for group in FILES for key, meaning in explained(group)}
    assert shown == {key.name: key.meaning for key in KEYS.values()}


def test_every_shipped_file_of_a_group_with_meanings_is_shown_above() -> None:
    for group in FAMILIES:
        files = {f"{group}/{path.stem}" for path in (CONFIGS / group).glob("*.yaml")}
        assert files == set(FILES[group].split())


def test_a_router_takes_its_defaults_from_the_same_declaration() -> None:
    for family in FAMILIES["router"].values():
        assert family.load()(d_model=2, num_experts=2).options == family.options()


def test_dense_has_the_same_d_ff_and_dense_wide_the_parameters_of_all_experts() -> None:
    switch, dense, wide = (composed(f"model={name}").model for name in ("switch", "dense", "dense_wide"))
    assert dense.d_ff == switch.d_ff and dense.num_switch_layers == wide.num_switch_layers == 0
    router, routers = SwitchOptions(), switch.num_switch_layers * switch.d_model * switch.num_experts
    assert wide.num_params(65, router) == switch.num_params(65, router) - routers


def test_flatten_gives_dotted_keys() -> None:
    assert flatten({"a": {"b": 1}, "c": None}) == {"a.b": 1, "c": None}


def test_compile_may_be_written_as_a_boolean() -> None:
    assert composed("trainer.compile=false").trainer.compile == "false"
    assert resolve(OmegaConf.structured(composed("trainer.compile=true"))).trainer.compile == "true"
