"""Runs with plugins: a later command names what is missing but imports nothing unasked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import extension_package
import pytest
from copied_process import Done
from sweep_runs import SMALL, run

import switch_lm
from switch_lm import check, evaluate, generate, inspect, report
from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError
from switch_lm.config.overrides import composed
from switch_lm.config.plugins import VARIABLE, PluginError
from switch_lm.storage import checkpoint
from switch_lm.training import start

READERS: list[tuple[Callable[[list[str]], int], list[str]]] = [
    (generate.main, ["--prompt=the", "--length=5"]),
    (evaluate.main, []),
    (check.main, []),
    (inspect.main, []),
]


def train(folder: Path, *arguments: str, plugins: str) -> Done:
    return run(folder, *arguments, env=os.environ | {VARIABLE: plugins})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin, whose import leaves a file, and a run of its router."""
    folder = tmp_path_factory.mktemp("plugin")
    plugins = extension_package.write(folder)
    with (folder / plugins / "__init__.py").open("a") as file:
        file.write("open('loaded', 'w').close()\n")
    done = train(folder, "router=second_best", "model.num_experts=4", "name=old", plugins=plugins)
    assert done.returncode == 0 and (folder / "loaded").exists(), done.stderr
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder from which the plugin could be imported, with no plugin named or loaded."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "loaded").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert "second_best" not in FAMILIES["router"]
    return tmp_path


@pytest.mark.parametrize(("reader", "options"), READERS, ids=lambda value: getattr(value, "__module__", ""))
def test_a_reader_of_a_run_without_its_routers_plugin_names_it_and_imports_nothing(
    reader: Callable[[list[str]], int], options: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reader(["--run", "old", *options]) == 2
    model, message = capsys.readouterr().err.splitlines()
    assert model.startswith("model: ") and "there is no router second_best here" in message
    assert message.endswith("used: SWITCH_LM_PLUGINS=extension")
    assert not (folder / "loaded").exists()


def test_load_and_init_from_without_the_plugin_name_it_too(folder: Path) -> None:
    with pytest.raises(PluginError, match="used: SWITCH_LM_PLUGINS=extension"):
        switch_lm.load("outputs/runs/old")
    with pytest.raises(ConfigError, match="used: SWITCH_LM_PLUGINS=extension"):
        start.train(composed([*SMALL, "init_from=old"]))
    assert not (folder / "loaded").exists()


def test_a_report_needs_no_plugin(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["old"]) == 0
    assert "second_best" in next(folder.glob("outputs/reports/*/report.md")).read_text()
    assert not (folder / "loaded").exists()


@pytest.mark.slow
@pytest.mark.parametrize("plugins", ["", "extension"])
def test_a_run_is_resumed_only_with_its_plugin(plugins: str, folder: Path) -> None:
    (folder / "outputs" / "runs" / "old" / "result.json").unlink()
    done = train(folder, "router=second_best", "model.num_experts=4", "resume=old", plugins=plugins)
    assert (folder / "loaded").exists() == bool(plugins)
    assert done.returncode == (0 if plugins else 2), done.stderr
    if not plugins:
        assert "threshold, topk, uniform; or if you trust" in done.stderr
        assert done.stderr.endswith("used: SWITCH_LM_PLUGINS=extension\n")


def test_only_training_needs_the_optimizers_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(tmp_path, "name=old", plugins="")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    run_folder = Path("outputs/runs/old")
    for file in run_folder.glob("checkpoints/*.ckpt"):  # as a plugin would have left it
        content = checkpoint.read(file)
        content[checkpoint.KEY]["config"]["optim"] = {"name": "mine"}
        content[checkpoint.KEY]["plugins"] = ["mine"]
        checkpoint.write(content, file)
    config = (run_folder / "config.yaml").read_text()
    (run_folder / "config.yaml").write_text("plugins: [mine]\n" + config.replace("name: muon", "name: mine"))
    assert [reader(["--run", "old", *options]) for reader, options in READERS] == [0, 0, 0, 0]
    (run_folder / "result.json").unlink()  # as if it were not finished
    done = train(tmp_path, "resume=old", plugins="")
    assert done.returncode == 2 and "there is no optimizer mine here" in done.stderr
    assert done.stderr.endswith("used: SWITCH_LM_PLUGINS=mine\n")
