"""What is typed is what is meant: text by letters, numbers where they are exact, null by its two names."""

from __future__ import annotations

from pathlib import Path

import pytest

from switch_lm.config.arguments import prepared, quoted
from switch_lm.config.keys import ConfigError
from switch_lm.config.overrides import composed
from switch_lm.config.rules import resolve
from switch_lm.config.schema import Config, DataConfig
from switch_lm.storage.run_folder import CONFIG, as_yaml, read_config

TEXTS = ("1e3.txt", "a b", "a=b", "a,b", "[a]", "{a}", "$x", "#x", "O'Brien", 'say "x"', "é", "${x}", "a\\", "a\nb")


@pytest.mark.parametrize("name", ["2026_11_26", "1e3", "007", "0x10", "true", "1_000", "nan"])
def test_a_name_is_the_text_that_was_typed(name: str) -> None:
    config = composed([f"name={name}", f"resume={name}", f"init_from={name}"])
    assert (config.name, config.resume, config.init_from) == (name, name, name)


@pytest.mark.parametrize("text", TEXTS)
def test_a_path_is_the_text_that_was_typed_and_is_stored_so(text: str, tmp_path: Path) -> None:
    once = prepared([f"data.path={text}", "-m", "seed=0,1"], groups=set())
    assert prepared(once, groups=set()) == once and once[1:] == ["seed=0,1", "-m"]
    config = composed([f"outputs={text}", f"data.path={text}", f"data.dir={quoted(text)}"])
    assert (config.outputs, config.data.path, config.data.dir) == (text, text, text)
    assert resolve(config) == config
    (tmp_path / CONFIG).write_text(as_yaml(config), encoding="utf-8")
    assert read_config(tmp_path)["outputs"] == text


def test_quotes_are_hydras_and_a_comma_parts_values_in_a_sweep_only() -> None:
    assert composed(["name='run'", 'data.path="a,b.txt"']).data.path == "a,b.txt"
    given = ["data.path=1,O'Brien.txt", "outputs=a,b", "-m"]
    assert prepared(given, groups=set())[:2] == ["data.path='1','O\\'Brien.txt'", "outputs='a,b'"]
    assert prepared(["experiment=capacity_sweep", "data.path=1,2"], groups=set())[1] == "data.path='1','2'"
    assert prepared(["experiment=capacity_sweep", "seed=choice(0)"], groups=set())[1] == "seed=choice(0)"


@pytest.mark.parametrize("typed", ["1e3", "1_000", "1000.0", "1E3", "10000e-1", "'1000'"])
def test_a_whole_number_in_any_exact_spelling_is_taken(typed: str) -> None:
    assert composed([f"trainer.max_steps={typed}"]).trainer.max_steps == 1000


@pytest.mark.parametrize("typed", ["1.5e0", "1k", "1e400", "inf", "nan", "0x10"])
def test_a_value_that_is_not_a_whole_number_is_named_as_typed_with_an_example(typed: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed([f"trainer.max_steps={typed}"])
    rule = "must be a whole number; for example trainer.max_steps=1800"
    assert str(error.value) == f"trainer.max_steps={typed}: {rule}"


@pytest.mark.parametrize("null", ["null", "none", "None"])
def test_none_and_null_are_the_same_where_a_key_may_be_null(null: str) -> None:
    keys = ("model.capacity_factor", "trainer.max_time", "data.path", "name", "model.switch_layers")
    assert composed([f"{key}={null}" for key in keys]).model.capacity_factor is None
    for key in ("seed", "alpha", "outputs"):
        with pytest.raises(ConfigError, match=f"{key}={null}: cannot be null"):
            composed([f"{key}={null}"])
    assert composed([f"balance={null}", f"logger.progress={null}"]).logger.progress == "none"


def test_a_tilde_is_the_home_folder_from_every_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    from_python = Config(outputs="~/o", data=DataConfig("~/t"))
    for config in (composed(["outputs=~/o", "data.path='~/t'"]), resolve(from_python)):
        assert (config.outputs, config.data.path) == (f"{tmp_path}/o", f"{tmp_path}/t")
    with pytest.raises(ConfigError, match="outputs=~nobody_here/x: no user named nobody_here on this machine"):
        composed(["outputs=~nobody_here/x"])
