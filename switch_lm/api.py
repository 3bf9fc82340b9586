"""The public names: `from switch_lm import load` imports them from here at first use. Only `fit` needs Hydra."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from switch_lm.generation.sampling import generate
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.routes import routes
from switch_lm.routers.base import Promise, Router
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import expert_capacity
from switch_lm.routers.oracles import Expected
from switch_lm.routers.routing import Routing
from switch_lm.storage import metrics
from switch_lm.storage.checkpoint import Header, find_checkpoint, read_model
from switch_lm.storage.runs import RunError, find_run, run_of
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.boards.base import Board
from switch_lm.training.process_state import restored

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

__all__ = [
    "Board",
    "Expected",
    "Promise",
    "Router",
    "Routing",
    "Run",
    "SwitchFeedForward",
    "SwitchLM",
    "expert_capacity",
    "fit",
    "load",
    "load_balancing_loss",
]
LOAD = re.compile(r"moe/layer_(\d+)/load/expert_(\d+)")
MOST_COLUMNS = 20  # steps in a picture of loads


class Curve(NamedTuple):
    """What a run reported of one tag."""

    step: NDArray[np.int64]
    value: NDArray[np.float64]  # NaN where it was not finite


@dataclass(frozen=True)
class Run:
    """A trained model in `eval()` on the CPU, and what is known of it. `model, vocabulary = run` unpacks it."""

    path: Path  # of the checkpoint, or of the weights of an export
    model: SwitchLM
    vocabulary: Vocabulary
    header: Header

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.vocabulary))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """Every key that it was trained with, by group: `run.config["model"]["num_experts"]`."""
        return self.header.config

    def generate(self, prompt: str = "", *, length: int = 500, **how: Any) -> str:
        """The prompt and what the model writes after it. `how`: seed, temperature, top_k, top_p, as the command has."""
        return prompt + "".join(generate(self.model, self.vocabulary, prompt, length=length, **how))

    def routing(self, text: str, *, capacity_factor: float | None = None) -> NDArray[np.void]:
        """Where each character of a text goes: a row per character and Switch layer, as in `probe.routes.routes`.

        By default nothing is dropped. `capacity_factor` limits the experts, in batches as in training. ValueError for
        a dense model, an empty text, or a character that the model does not know.
        """
        rows, ids = self.config["data"]["batch_size"], self.vocabulary.encode(text)
        return routes(self.model, self.vocabulary, ids, batch_size=rows, capacity_factor=capacity_factor)

    def history(self) -> dict[str, Curve]:
        """All that the run reported, by tag: `step, value = run.history()["val/loss"]`. Tags: docs/files.md."""
        folder = run_of(self.path)
        if not (folder / metrics.METRICS).is_file():
            raise RunError(f"{folder} has no {metrics.METRICS}, as an export has none: load the run itself")
        rows = metrics.read(folder)
        tags = dict.fromkeys(tag for row in rows for tag in row if tag not in ("step", "time"))
        series = {tag: metrics.series(rows, tag) for tag in tags}
        return {tag: Curve(np.array([*one], np.int64), np.array([*one.values()])) for tag, one in series.items()}

    def plot_losses(self) -> Figure:
        """Training and validation loss by step."""
        from switch_lm.pages.document import Picture, Series
        from switch_lm.pages.pictures import draw

        history, names = self.history(), {"train/loss": "training", "val/loss": "validation"}
        curves = [(name, history[tag]) for tag, name in names.items() if tag in history]
        series = [Series(name, tuple(one.step.tolist()), tuple(one.value.tolist())) for name, one in curves]
        alt = "The loss of training and of validation by step."
        return draw(Picture("losses", "Loss", alt, "step", "nats per character", tuple(series)))

    def plot_loads(self) -> Figure:
        """Each expert's load over the mean of its layer, by step. ValueError where no load of an expert was logged."""
        from switch_lm.pages.document import HeatMap
        from switch_lm.pages.expert_maps import stacked
        from switch_lm.pages.pictures import draw

        history = self.history()
        places = {tag: tuple(map(int, found.groups())) for tag in history if (found := LOAD.fullmatch(tag))}
        if not places:
            raise ValueError(
                "no load of an expert was logged: give a Switch model, trained with logger.per_expert=true"
            )
        layers: dict[int, list[NDArray[np.float64]]] = {}
        for tag, (layer, _) in sorted(places.items(), key=lambda item: item[1]):
            layers.setdefault(layer, []).append(history[tag].value)
            step = history[tag].step
        kept = np.unique(np.linspace(0, len(step) - 1, MOST_COLUMNS).round().astype(int))
        loads = {layer: np.array(load)[:, kept] / np.mean(load, axis=0)[kept] for layer, load in layers.items()}
        rows = [load.tolist() for load in loads.values()]
        names, values = stacked(rows, [*layers], experts_L=[range(len(load)) for load in rows])
        alt = "A row for each expert of each layer, a column for each step, as colour its load over the mean."
        high = max(2.0, math.ceil(max(load.max() for load in loads.values())))
        steps, what = tuple(map(str, step[kept])), "load over the mean of the layer"
        title = "Loads of the experts in training"
        return draw(HeatMap("loads", title, alt, "step", "expert", what, steps, names, values, 0.0, high, 1.0))


def load(name: str | Path) -> Run:
    """A trained run by its name, `SWEEP/JOB`, the folder of a run or of an export, or a checkpoint file.

    CheckpointError says which file cannot be read, and why; RunError, which runs there are; PluginError, which plugin
    its router needs. Random numbers go on as if nothing had been loaded.
    """
    try:
        path = find_run(str(name))
    except RunError:
        if not (path := Path(name).expanduser()).exists():
            raise
    path = find_checkpoint(path)
    with restored():  # a model is drawn before its weights are read
        model, header = read_model(path)
    return Run(path, model, Vocabulary(header.vocabulary, header.start), header)


def fit(overrides: Sequence[str] = ()) -> Run:
    """Trains as `python -m switch_lm.train KEY=VALUE ...` does, and returns the run: its best checkpoint.

    Afterwards the process is as before: threads, random numbers, signals, warnings, logs, Hydra. A notebook shows one
    line that is written over. ConfigError, TextError and TrainingError say what is wrong; Stopped, which is no
    Exception, that it was interrupted, and what is saved.
    """
    with restored():  # around the imports, too: Lightning sets logs and warnings
        warnings.filterwarnings("ignore", "IProgress not found")  # of a bar of others, which is not used
        from switch_lm.config.overrides import composed
        from switch_lm.storage.choice import GOAL, own_goal
        from switch_lm.sweep.jobs import as_mapping
        from switch_lm.training.start import train

        config, given = composed(overrides), as_mapping([*overrides])
        if GOAL not in given and (goal := own_goal(config.outputs, config.resume)) is not None:
            config = composed([*overrides, f"{GOAL}={goal}"])
        result = train(config, overrides=given)
        return load(Path(config.outputs) / "runs" / result["name"])
