"""Row 20: a checkpoint, a configuration, a server or a network that means harm does none."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pytest
import requests
import torch
from conftest import MakeRun, tiny_model
from mirror_servers import a_small_made_up_world as a_small_made_up_world
from mirror_servers import refusal

import switch_lm
from switch_lm import dashboard, evaluate, generate
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config
from switch_lm.storage.checkpoint import CheckpointError
from switch_lm.storage.run_folder import as_yaml
from switch_lm.text import mirrors
from switch_lm.train import main as train_main
from switch_lm.training.start import train


class Harm:
    """Unpickled it would write a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.sign}",)


def malicious(path: Path, kind: str, sign: Path) -> None:
    """A checkpoint that runs a command if it is unpickled, in one of the forms that torch reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harm(sign)))
    elif kind == "torch":
        torch.save({"state_dict": {}, "switch_lm": Harm(sign)}, path)
    elif kind == "legacy":
        torch.save(Harm(sign), path, _use_new_zipfile_serialization=False)
    else:  # a good checkpoint in which only the pickle is exchanged, checksums and all
        content = {"state_dict": tiny_model().state_dict()}
        torch.save(content, path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, body in parts.items():
                archive.writestr(name, pickle.dumps(Harm(sign)) if name.endswith("data.pkl") else body)


@pytest.mark.row(20)
@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy", "exchanged"])
def test_a_malicious_pickle_is_refused_by_every_way_in_and_nothing_runs(
    kind: str, config: Config, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign = tmp_path / "harm was done"
    file = make_run() / "checkpoints" / "best.ckpt"
    malicious(file, kind, sign)
    for command in (generate.main, evaluate.main):
        assert command(["--run", "tiny"]) == 1
        assert "best.ckpt cannot be read as a checkpoint" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        switch_lm.load(file)
    with pytest.raises(ConfigError, match=r"init_from=.*cannot be read as a checkpoint"):
        train(replace(config, init_from=str(file)))
    run = Path(config.outputs) / "runs" / "stopped"
    malicious(run / "checkpoints" / "last.ckpt", kind, sign)
    shutil.copy(written_config(config), run / "config.yaml")
    with pytest.raises(ConfigError, match=r"can(not)? be read"):
        train(replace(config, name=None, resume="stopped"))
    assert not sign.exists()


def written_config(config: Config) -> Path:
    path = Path(config.data.path or "").with_name("config.yaml")
    path.write_text(as_yaml(config))
    return path


@pytest.mark.row(20)
@pytest.mark.parametrize("url", ["http://127.0.0.1/last.ckpt", "https://example.org/best.ckpt", "s3://bucket/x.ckpt"])
def test_a_url_as_checkpoint_is_refused_and_nothing_is_fetched(
    url: str, config: Config, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    make_run()
    assert generate.main(["--run", url]) == evaluate.main(["--run", url]) == 1
    with pytest.raises(ConfigError, match="init_from="):
        train(replace(config, init_from=url))
    with pytest.raises(ConfigError, match="resume="):
        train(replace(config, resume=url))


@pytest.mark.row(20)
@pytest.mark.parametrize(
    "arguments",
    [
        ["model@hydra.callbacks.x=switch"], ["+model._target_=os.system"], ["model._target_=os.system"],
        ["model={_target_: builtins.open, file: harm, mode: w}"],
        ["+x={_target_: builtins.open, file: harm, mode: w}"], ["data.path=${python:os.system}"],
        ["experiment=../../tmp/evil"], ["experiment=/tmp/evil"], ["+experiment='../evil'"],
        ["model=[switch,../evil]"], ["experiment=${oc.env:HOME}"], ["-m", "experiment=smoke,../evil"],
        ["-m", "experiment=choice(smoke,'../evil')"], ["-m", "experiment=glob(*)"], ["../evil=x"],
        ["experiment/../x=y"], ["hydra/launcher=../evil"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_key_of_a_configuration_can_name_code_to_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stop:
        train_main()
    output = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in output and len(output.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


class SentOn:
    """An answer that came from another address than the one that was asked."""

    url, status_code, history = "http://elsewhere.invalid/text", 200, ()

    def __enter__(self) -> SentOn:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def iter_content(self, size: int) -> Iterator[bytes]:
        raise AssertionError("it was read")


@pytest.mark.row(20)
def test_a_mirror_that_sends_on_to_plain_http_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "get", lambda *_, **__: SentOn())
    monkeypatch.setattr(mirrors, "MIRRORS", ("https://mirror.invalid/text",))
    assert "redirected to http://elsewhere.invalid/text, which is not HTTPS" in refusal(tmp_path)


@pytest.mark.row(20)
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_the_dashboard_listens_on_this_machine_only() -> None:
    place = Path(__file__).parents[2]
    output = subprocess.run(["make", "-n", "tensorboard"], cwd=place, capture_output=True, text=True, check=True).stdout
    assert "-m switch_lm.dashboard" in output and "bind_all" not in output
    assert dashboard.parser().parse_args([]).host == "127.0.0.1"
