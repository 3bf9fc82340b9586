"""Weights & Biases."""

import html
import importlib.metadata
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from switch_lm.config.keys import ConfigError, key, one_of
from switch_lm.config.schema import Config
from switch_lm.storage.files import replace_text
from switch_lm.training.boards.base import Board


@dataclass
class WandbOptions:
    project: str = key("switch_lm", "The project that the run is shown in.", changes_result=False)
    mode: str | None = key(
        None,
        "online or offline. null: the environment variable WANDB_MODE, or else offline: nothing leaves this machine "
        "before `wandb sync`.",
        one_of("online", "offline"),
        changes_result=False,
    )


class Wandb(Board):
    """Its files are in the folder `wandb` of the run. A resumed run keeps its id, so it stays one run there."""

    name = "wandb"
    Options = WandbOptions

    @classmethod
    def require(cls) -> None:
        try:
            importlib.metadata.version("wandb")
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                "logger=wandb: the package wandb is not installed; pip install 'switch-lm[wandb]', or choose other "
                "boards, for example logger=tensorboard"
            ) from None

    def __init__(self, run: Path, options: WandbOptions, *, config: Config, first_step: int) -> None:
        import wandb

        self._wandb = wandb
        mode: Any = options.mode or os.environ.get("WANDB_MODE") or "offline"
        self._session = wandb.init(
            project=options.project,
            name=run.name,
            id=_id_of(run),
            dir=str(run),
            mode=mode,
            resume="allow" if mode == "online" else None,  # offline, `wandb sync --append` does that
            reinit="create_new",  # the jobs of a sweep share a process
            config=asdict(config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._session.log(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        self._session.log({tag: self._wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def image(self, tag: str, image: Any, step: int) -> None:
        self._session.log({tag: self._wandb.Image(image)}, step=step)

    def histogram(self, tag: str, counts: Sequence[int], step: int, *, low: float, high: float) -> None:
        edges = [low + (high - low) * i / len(counts) for i in range(len(counts) + 1)]
        self._session.log({tag: self._wandb.Histogram(np_histogram=(list(counts), edges))}, step=step)

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, str]) -> None:
        """Nothing: the whole configuration is there from the start."""

    def close(self) -> None:
        self._session.finish()


def _id_of(run: Path) -> str:
    """The run's id at Weights & Biases, chosen at its first start."""
    file = run / "wandb" / "id"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        replace_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")
