"""switch_lm: a small Switch Transformer language model, trained and measured end to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from switch_lm.model.transformer import SwitchLM
    from switch_lm.text.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["load"]


def load(path: str | Path) -> tuple[SwitchLM, Vocabulary]:
    """A trained model, ready for use in a notebook, and its vocabulary. `path`: a checkpoint or the folder of a run."""
    from switch_lm.storage.checkpoint import load as load_checkpoint  # torch is slow to import: only when needed

    return load_checkpoint(path)
