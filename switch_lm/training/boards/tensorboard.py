"""TensorBoard: event files in the run's folder."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from switch_lm.config.schema import Config
from switch_lm.training.boards.base import Board

FLUSH_SECONDS = 10
EVENTS = "events.out.tfevents.*"


class TensorBoard(Board):
    """`switch_lm.dashboard` shows it. A resumed run begins a new event file, which hides the steps written twice."""

    name = "tensorboard"

    def __init__(self, run: Path, options: Any, *, config: Config, first_step: int) -> None:
        self._writer = open_writer(run, purge_step=first_step, flush_secs=FLUSH_SECONDS)
        self._name = f"{run.parent.name}/{run.name}"  # of its row
        self._flushed = time.monotonic()

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

    def histogram(self, tag: str, counts: Sequence[int], step: int, *, low: float, high: float) -> None:
        width = (high - low) / len(counts)
        middles = [low + width * (i + 0.5) for i in range(len(counts))]
        self._writer.add_histogram_raw(
            tag,
            min=low,
            max=high,
            num=sum(counts),
            sum=sum(x * count for x, count in zip(middles, counts, strict=True)),
            sum_squares=sum(x * x * count for x, count in zip(middles, counts, strict=True)),
            bucket_limits=[x + width / 2 for x in middles],
            bucket_counts=list(counts),
            global_step=step,
        )

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, str]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb

        columns = [Metric(tag, display_name=name) for name, tag in metrics.items()]
        writer: Any = self._writer.file_writer  # `add_hparams` would begin another event file
        writer.add_summary(hparams_config_pb(hparams=[*map(HParam, values)], metrics=columns))
        writer.add_summary(hparams_pb(dict(values), trial_id=self._name))

    def close(self) -> None:
        self._writer.close()


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
