"""TensorBoard: event files in the run's folder, and the charts that show its layers."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from switch_lm.config.schema import Config
from switch_lm.training.boards.base import Board

# The overview's charts: their titles, and the tags they draw.
OF_EVERY_RUN = {
    "validation loss: whole split and window losses": [
        "^val/loss$",
        "^val/window_loss$",
        "^val/window_loss_train_capacity$",
        "^val/window_loss_generation$",
    ],
}
OF_ROUTED_RUNS = {
    "dropped share, by layer": [r"^moe/layer_\d+/dropped_share$"],
    "balance loss, all layers (1 a layer: even)": ["^train/balance_loss$"],
    "router entropy, by layer": [r"^moe/layer_\d+/router_entropy$"],
    "mean gate, by layer": [r"^moe/layer_\d+/mean_gate$"],
    "router's gradient from the language loss, by layer": [r"^health/layer_\d+/language_gradient$"],
}
OF_EACH_EXPERT = {"load": "tokens selected", "kept": "tokens kept", "mean_prob": "mean probability P"}
FLUSH_SECONDS = 10
EVENTS = "events.out.tfevents.*"


class TensorBoard(Board):
    """`switch_lm.dashboard` shows it. A resumed run begins a new event file, which hides the steps written twice."""

    name = "tensorboard"

    def __init__(self, run: Path, options: Any, *, config: Config, first_step: int) -> None:
        self._writer = open_writer(run, purge_step=first_step, flush_secs=FLUSH_SECONDS)
        self._flushed = time.monotonic()
        self._writer.add_custom_scalars(chart_layout(config.model.switch_blocks))  # the last one counts

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:  # the writer goes by the clock, which may go back
            self._writer.flush()
            self._flushed = time.monotonic()

    def text(self, tag: str, text: str, step: int) -> None:
        self._writer.add_text(tag, text, step)

    def image(self, tag: str, image: Any, step: int) -> None:
        self._writer.add_image(tag, image, step, dataformats="HWC")

    def histogram(self, tag: str, counts: Sequence[int], step: int) -> None:
        self._writer.add_histogram_raw(
            tag,
            min=0,
            max=len(counts) - 1,
            num=sum(counts),
            sum=sum(i * count for i, count in enumerate(counts)),
            sum_squares=sum(i * i * count for i, count in enumerate(counts)),
            bucket_limits=[i + 0.5 for i in range(len(counts))],
            bucket_counts=list(counts),
            global_step=step,
        )

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.scalars(metrics, 0)  # without any the page shows nothing
        for summary in hparams(dict(values), dict(metrics)):
            writer: Any = self._writer.file_writer  # `add_hparams` would begin another event file
            writer.add_summary(summary)

    def close(self) -> None:
        self._writer.close()


def chart_layout(blocks: Sequence[int]) -> dict[str, dict[str, list[object]]]:
    """Custom charts: an overview, then one per Switch layer and quantity with a line per expert, or per quantile.

    TensorBoard merges the layouts of all runs by their titles: no title depends on anything but the layer's number.
    """
    overview = OF_EVERY_RUN | (OF_ROUTED_RUNS if blocks else {})
    layout: dict[str, dict[str, list[object]]] = {
        "overview": {title: ["Multiline", tags] for title, tags in overview.items()}
    }
    for layer in blocks:
        layout[f"layer {layer:02d}"] = {
            f"layer {layer:02d}: {title}, of the experts": ["Multiline", [rf"^moe/layer_{layer:02d}/{quantity}/\w+$"]]
            for quantity, title in OF_EACH_EXPERT.items()
        }
    return layout


def open_writer(run: Path, **options: Any) -> Any:
    """A `SummaryWriter` whose event file comes after all that are there, even if the clock went back.

    TensorBoard reads event files in the order of their names, which begin with the second of the clock.
    """
    from tensorboard.summary.writer import event_file_writer
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    seconds = [part for path in run.glob(EVENTS) if (part := path.name.split(".")[3]).isdecimal()]
    begins = max(time.time(), 1 + max(map(int, seconds), default=0))
    # No argument chooses the name: `filename_suffix` stands behind the time. The writer asks its module's clock; its
    # thread does, too, and must go by the real one.
    creator = threading.current_thread()
    clock = SimpleNamespace(time=lambda: begins if threading.current_thread() is creator else time.time())
    event_file_writer.time = clock
    try:
        return SummaryWriter(str(run), **options)
    finally:
        event_file_writer.time = time
