"""The public names, without Hydra or Lightning: `from switch_lm import load` imports them from here at first use."""

from pathlib import Path

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.base import Promise, Router
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import expert_capacity
from switch_lm.routers.oracles import Expected
from switch_lm.routers.routing import Routing
from switch_lm.storage.checkpoint import read_model
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.boards.base import Board

__all__ = [
    "Board",
    "Expected",
    "Promise",
    "Router",
    "Routing",
    "SwitchFeedForward",
    "SwitchLM",
    "expert_capacity",
    "load",
    "load_balancing_loss",
]


def load(path: str | Path) -> tuple[SwitchLM, Vocabulary]:
    """A trained model in `eval()` on the CPU, and its vocabulary, from a checkpoint or the folder of a run.

    CheckpointError says which file cannot be read, and why; PluginError, which plugin its router needs.
    """
    model, header = read_model(Path(path).expanduser())
    return model, Vocabulary(header.vocabulary, header.start)
