"""How training writes checkpoints, and which of the best it keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from switch_lm.config.schema import TrainerConfig
from switch_lm.storage import checkpoint
from switch_lm.storage.runs import BEST


class AtomicCheckpointIO(CheckpointIO):
    """Writes Lightning's checkpoints with our own writer: Lightning's stages elsewhere and can destroy the old file.

    `before_first` is called before the first one.
    """

    def __init__(self, before_first: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.before_first: Callable[[], None] | None = before_first

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if self.before_first is not None:
            self.before_first()
            self.before_first = None
        checkpoint.write(checkpoint_, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return checkpoint.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Best(ModelCheckpoint):
    """Keeps the checkpoints of the `count` lowest val/loss."""

    def __init__(self, folder: Path, filename: str, count: int) -> None:
        super().__init__(
            folder, filename, monitor="val/loss", save_top_k=count, auto_insert_metric_name=False,
            enable_version_counter=False,
        )  # fmt: skip

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__}({self.filename})"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The run may have moved: Lightning would forget the best checkpoint and accept any next one as the best."""

        def here(path: str) -> str:
            return path and str(Path(str(self.dirpath)) / Path(path).name)

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": kept, "dirpath": self.dirpath})


def best_checkpoints(folder: Path, config: TrainerConfig) -> list[Callback]:
    """`best.ckpt` with the lowest val/loss, and the `keep_best` best if that is more than one.

    These are named by step and not by rank: a run that was killed and validates again replaces its own files.
    """
    kept = [Best(folder, "step_{step:06d}", config.keep_best)] if config.keep_best > 1 else []
    return [Best(folder, Path(BEST).stem, 1), *kept]
