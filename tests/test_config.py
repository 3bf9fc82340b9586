"""A bad configuration is refused in one message that names key, value, rule and fix, before anything is written."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from switch_lm.config import ConfigError, flatten, resolve
from switch_lm.paths import config_dir
from switch_lm.settings import Config
from switch_lm.train import main

CONFIGS = config_dir()


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def test_every_shipped_choice_is_a_valid_configuration() -> None:
    for group in ("model", "optim", "experiment", "variant"):
        for path in (CONFIGS / group).glob("*.yaml"):
            assert composed(f"{group}={path.stem}").trainer.max_steps > 0


def test_the_shipped_values_are_the_schemas_defaults() -> None:
    assert asdict(composed()) == asdict(Config())


def test_the_default_has_a_name_among_the_presets_for_a_time() -> None:
    assert composed("experiment=five_minutes") == composed()


def test_every_key_is_explained_in_its_yaml() -> None:
    files = ("train", "model/switch", "data/tiny_shakespeare", "optim/muon", "trainer/default", "logger/tensorboard")
    for path in (CONFIGS / f"{name}.yaml" for name in files):
        lines = path.read_text().split("hydra:")[0].splitlines()
        for before, line in pairwise(lines):
            key = re.match(r"[a-z_0-9]+:", line)
            assert key is None or key[0] == "defaults:" or "#" in line or before.startswith("#"), f"{path}: {line}"


def test_dense_has_the_same_d_ff_and_dense_wide_the_parameters_of_all_experts() -> None:
    switch, dense, wide = (composed(f"model={name}").model for name in ("switch", "dense", "dense_wide"))
    assert dense.d_ff == switch.d_ff and dense.num_switch_layers == wide.num_switch_layers == 0
    routers = switch.num_switch_layers * switch.d_model * switch.num_experts
    assert wide.num_params(65) == switch.num_params(65) - routers


BAD = [
    ("model.num_layers=0", "model.num_layers=0: must be at least 1"),
    ("model.num_heads=5", "model.num_heads=5: must divide model.d_model"),
    ("model.position=sinus", "must be one of rotary, learned, none"),
    ("model.dropout=1.0", "model.dropout=1.0: must lie in 0 .. 1"),
    ("model.capacity_factor=0", "model.capacity_factor=0.0: must be a positive number, or null"),
    ("model.capacity_factor=inf", "model.capacity_factor=inf"),
    ("model.capacity_factor=none", "for no limit write null"),
    ("model.num_experts=-2", "model.num_experts=-2"),
    ("model.num_experts=two", "model.num_experts"),
    ("optim.name=sgd", "must be one of muon, adamw"),
    ("optim.lr=nan", "optim.lr=nan: must be a positive number"),
    ("trainer.max_steps=0", "trainer.max_steps=0: must be at least 1"),
    ("trainer.precision=fp16", "must be one of auto, bf16, fp32"),
    ("trainer.max_time=20", "trainer.max_time=20: must be a time as hours:minutes:seconds"),
    ("trainer.max_time=00:00:00", "trainer.max_time=00:00:00: must be"),
    ("alpha=-1", "alpha=-1.0: must lie in"),
    ("alpha=nan", "alpha=nan"),
    ("name=../../x", "name=../../x: may hold letters"),
    ("name=.hidden", "name=.hidden"),
    ("resume=a/b", "resume=a/b"),
    ("model.capacity_facter=1", "model.capacity_facter: no such key; did you mean model.capacity_factor"),
    ("+model.capacity_facter=1", "model.capacity_facter: no such key; did you mean model.capacity_factor"),
    ("max_steps=5", "max_steps: no such key; did you mean trainer.max_steps"),
    ("model=swich", "model=swich: no such choice; choose one of annotated, dense, dense_wide, moe_top2, switch"),
    ("alpha", "alpha: can not be read as key=value"),
]


@pytest.mark.parametrize(("override", "message"), BAD)
def test_a_bad_override_ends_with_code_2_one_message_and_nothing_written(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", override])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert message in printed.err and "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_values_out_of_range_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        composed("alpha=-1", "seed=-1", "model.d_ff=0")
    assert len(str(error.value).splitlines()) == 3


def test_flatten_gives_dotted_keys() -> None:
    assert flatten({"a": {"b": 1}, "c": None}) == {"a.b": 1, "c": None}


def test_compile_may_be_written_as_a_boolean() -> None:
    assert composed("trainer.compile=false").trainer.compile == "false"
    assert resolve(OmegaConf.structured(composed("trainer.compile=true"))).trainer.compile == "true"
