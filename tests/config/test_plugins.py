"""Plugins: code that adds to this package is named by the person who runs a command, and never by a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from switch_lm.config import plugins
from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError
from switch_lm.config.overrides import composed, explain
from switch_lm.config.paths import config_dir
from switch_lm.config.plugins import VARIABLE, PluginError, load_plugins, not_loaded
from switch_lm.config.schema import KEYS, Config
from switch_lm.storage.run_folder import FORMAT, as_yaml, read_config

OPTIONS = """
from dataclasses import dataclass
from switch_lm.config.families import register
from switch_lm.config.keys import key, within
from switch_lm.routers.options import RouterOptions

@dataclass
class Options(RouterOptions):
    name: str = key("second", "Which router it is.")
    strength: float = key(0.5, "How much it prefers the second.", within(0, 1))

class Second: ...

register("router", "second", options=Options, code=Second)
"""
YAML = "defaults: [base]\nname: second\nstrength: 0.25\n"
HARM = "open('harm', 'w').close()\n"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files, by path, into a folder of modules; afterwards nothing of them is loaded or declared."""
    monkeypatch.delenv(VARIABLE, raising=False)
    place = tmp_path / "modules"
    place.mkdir()
    plugins._loaded.cache_clear()
    families, keys, modules = {group: dict(ones) for group, ones in FAMILIES.items()}, dict(KEYS), set(sys.modules)

    def write(files: dict[str, str], named: str | None = None) -> Path:
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        monkeypatch.syspath_prepend(place)
        if named is not None:
            monkeypatch.setenv(VARIABLE, named)
        return place

    yield write
    plugins._loaded.cache_clear()
    for group, ones in families.items():
        FAMILIES[group].clear()
        FAMILIES[group].update(ones)
    KEYS.clear()
    KEYS.update(keys)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(place)):
            del sys.modules[name]


def second(folder: str = "second") -> dict[str, str]:
    return {f"{folder}/__init__.py": OPTIONS, f"{folder}/configs/router/second.yaml": YAML}


def entry_point(module: str, group: str = "switch_lm.routers", value: str | None = None) -> dict[str, str]:
    """What pip writes of an installed package named extra."""
    return {
        "extra-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n",
        "extra-1.0.dist-info/entry_points.txt": f"[{group}]\nsecond = {value or module}\n",
    }


def command(folder: Path, *words: str, plugins: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which finds modules beside where it is started."""
    env = os.environ | {VARIABLE: plugins} | variables
    run = [sys.executable, "-m", f"switch_lm.{words[0]}", *words[1:]]
    return subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (second(), "second"),
        (second(), " second , second,"),
        ({"second.py": OPTIONS, "configs/router/second.yaml": YAML}, "second"),
        ({"pack/__init__.py": "", "pack/second.py": OPTIONS, "pack/configs/router/second.yaml": YAML}, "pack.second"),
        ({"pack/second.py": OPTIONS, "pack/configs/router/second.yaml": YAML}, "pack.second"),
        (second() | entry_point("second:Second"), None),
        (second() | entry_point("second", group="switch_lm.boards"), "second"),
    ],
    ids=["package", "twice", "module", "in a package", "in a namespace", "installed", "installed and named"],
)
def test_a_plugins_router_is_chosen_checked_and_suggested_like_ours(
    files: dict[str, str], named: str | None, write: Write
) -> None:
    write(files, named)
    config = composed(["router=second", "router.top_k=2"])
    assert type(config.router).__name__ == "Options" and (config.router.name, config.router.top_k) == ("second", 2)
    assert vars(config.router)["strength"] == 0.25
    for overrides, message in [
        (["router=second", "router.strenth=1"], "did you mean router.strength"),
        (["router=second", "router.strength=2"], "router.strength=2.0: must lie in 0 .. 1"),
        (["router=switch", "router.strength=1"], "router=switch has no such key; router=second has"),
        (["router=secnd"], "second, sigmoid, switch, threshold, topk, uniform; or name the plugin that has it"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            composed(overrides)
    assert load_plugins() == ("pack.second" if named == "pack.second" else "second",)


BARE = OPTIONS.replace("@dataclass\n", "")
WITHOUT_DEFAULT = OPTIONS.replace(
    'strength: float = key(0.5, "How much it prefers the second.", within(0, 1))',
    "x: int = field(kw_only=True)",
).replace("import dataclass", "import dataclass, field")


@pytest.mark.parametrize(
    ("files", "named", "message"),
    [
        ({}, "absent", "SWITCH_LM_PLUGINS=absent: there is no module absent; install it"),
        (second(), "second.absent", "SWITCH_LM_PLUGINS=second.absent: there is no module second.absent; install it"),
        ({}, "./second.py", "SWITCH_LM_PLUGINS=./second.py: it must hold names of modules"),
        ({}, "a\x1b[31m b", "SWITCH_LM_PLUGINS=a?[31m b: it must hold names of modules"),
        ({"m.py": "\n\nimport absent\n"}, "m", "{}/m.py, line 3: ModuleNotFoundError: No module named 'absent'; corr"),
        ({"m.py": "\n1 +\n"}, "m", "{}/m.py, line 2: SyntaxError: invalid syntax; correct the file"),
        ({"m.py": "raise SystemExit"}, "m", "{}/m.py, line 1: SystemExit; correct the file"),
        ({"m.py": "import json\njson.loads('')"}, "m", "{}/m.py, line 2: JSONDecodeError: Expecting value"),
        ({"m/__init__.py": "import m.sub", "m/sub.py": "\n1 / 0"}, "m", "{}/m/sub.py, line 2: ZeroDivisionError: div"),
        ({"m.py": OPTIONS.replace('"second"', '"topk"')}, "m", "line 14: ValueError: router=topk: there is one of thi"),
        (
            {"m.py": BARE},
            "m",
            "line 13: TypeError: Options is not decorated with @dataclass, so its fields are no keys; ",
        ),
        (
            {"m.py": WITHOUT_DEFAULT},
            "m",
            "line 14: TypeError: Options: each field must have a default (",
        ),
        (
            second() | {"second/configs/router/topk.yaml": ""},
            "second",
            "{}/second/configs/router/topk.yaml: CONFIGS/router/topk.yaml has this name already; give the file another",
        ),
        (
            second("one") | {"two/__init__.py": "", "two/configs/router/second.yaml": ""},
            "one,two",
            "SWITCH_LM_PLUGINS=two: {0}/two/configs/router/second.yaml: {0}/one/configs/router/second.yaml has this na",
        ),
        (
            {"m.py": "1 / 0"} | entry_point("m:Second"),
            None,
            "the installed package extra (switch_lm.routers: second = m:Second): {}/m.py, line 1: ZeroDivisionError: ",
        ),
        (entry_point("absent"), None, "there is no module absent; install it"),
        ({"m.py": ""} | entry_point("m:Second"), None, "AttributeError: module 'm' has no attribute 'Second'; correct"),
        ({"m.py": "1 / 0"} | entry_point("m:Second"), None, "or remove it: pip uninstall extra"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_with_who_named_it_and_its_own_line(
    files: dict[str, str], named: str | None, message: str, write: Write
) -> None:
    place = write(files, named)
    with pytest.raises(
        PluginError, match=re.escape(message.format(place).replace("CONFIGS", str(config_dir())))
    ) as error:
        composed(["router=switch"])
    assert "\n" not in str(error.value)


def test_a_module_beside_our_own_configs_may_use_them(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write({"second.py": OPTIONS, "configs/router/second.yaml": YAML}, "second")
    monkeypatch.setattr(plugins, "config_dir", lambda: place / "configs")
    assert load_plugins() == ("second",) and plugins.plugin_configs() == {}


def test_a_run_stores_its_plugins_as_text_that_is_no_key(write: Write, tmp_path: Path) -> None:
    assert "plugins" not in as_yaml(Config())
    write(second(), "second")
    router = composed(["router=second"]).router
    (tmp_path / "config.yaml").write_text(as_yaml(Config(router=router)))
    assert "\nplugins: [second]\n" in (tmp_path / "config.yaml").read_text()
    stored = read_config(tmp_path)
    assert "plugins" not in stored and stored["router.strength"] == 0.25


@pytest.mark.parametrize(
    ("name", "plugins", "message"),
    [
        (
            "a",
            ["m", "n.o"],
            "RUN: there is no router a here; if you trust its code, name the plugin that the run used: VAR=m,n.o",
        ),
        ("a", ["m; rm -rf ~", "../m", "$(m)", "m\n", "m" * 81, 1], "RUN: there is no router a here; name the plugin"),
        ("a", None, "RUN: there is no router a here; name the plugin that has it: VAR=MODULE"),
        ("a\n\x1b[31m", "m", "RUN: there is no router a??[31m here; name the plugin"),
        ({"a": "b" * 1000}, {}, "RUN: there is no router {'a': '" + "b" * 73 + " here; name the plugin"),
        ("a", ["m"] * 100, "used: VAR=" + ",".join(["m"] * 8)),
    ],
)
def test_what_a_file_says_of_plugins_is_short_printable_and_safe_to_paste(
    name: object, plugins: object, message: str
) -> None:
    text = str(not_loaded("RUN", "router", name, plugins))
    assert message.replace("VAR", VARIABLE) in text
    assert text.isprintable() and len(text) < 300


@pytest.mark.parametrize("arguments", [["resume=old"], ["resume=old", "router=second"]], ids=" ".join)
def test_a_run_folder_that_names_a_plugin_runs_none_of_its_code(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "harmful.py").write_text(HARM)
    run = tmp_path / "outputs" / "runs" / "old"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"format: {FORMAT}\nplugins: [harmful]\nrouter: {{name: second}}\n")
    done = command(tmp_path, "train", *arguments)
    assert done.returncode == 2 and "used: SWITCH_LM_PLUGINS=harmful" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 2 and not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "--cfg", "job"], 0),
        (["train", "-sc", "query=bash"], 0),
        (["check", "router=none"], 2),
        (["report", "nowhere"], 1),
        (["generate", "--help"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_command_loads_plugins_only_where_it_needs_them(words: list[str], code: int, tmp_path: Path) -> None:
    for name, text in second().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + HARM * name.endswith(".py"))
    done = command(tmp_path, *words, plugins="second", COMP_LINE="switch-lm-train router=se", COMP_POINT="25")
    assert done.returncode == code, done.stderr
    assert (tmp_path / "harm").exists() == (words[0] in ("train", "check"))
    if "-sc" in words:
        assert done.stdout.split() == ["router=second"]


def test_an_unknown_choice_of_another_group_is_not_said_to_be_a_plugins() -> None:
    with pytest.raises(ConfigError) as error:
        composed(["model=absent"])
    assert "choose one of annotated, dense" in str(error.value) and VARIABLE not in explain(error.value)
