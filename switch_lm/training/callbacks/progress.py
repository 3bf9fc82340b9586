"""The progress of a run on the console: a live bar on a terminal, plain lines elsewhere."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from switch_lm.config.schema import Config
from switch_lm.training.callbacks.base import MicroBatch, StepCallback

DROPPED = "moe/dropped_share"


class ConsoleProgress(StepCallback):
    """A bar or lines, and a line that stays for each validation. With a heading, only a bar that goes at the end."""

    def __init__(self, config: Config, console: Console, *, heading: str | None = None) -> None:
        style, steps, every = config.logger.progress, config.trainer.max_steps, config.logger.log_every
        bar_wanted = style == "bar" or (style == "auto" and sys.stdout.isatty())
        self.prints_validations = style != "none" and heading is None
        self.prints_steps = self.prints_validations and not bar_wanted
        self.log_every, self.print_every = every, max(every, steps // 20 // every * every)
        self.console, self.max_steps = console, steps
        columns = (
            TextColumn(heading or "training", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(
            *columns,
            console=console if heading is None else Console(),  # the run's own is quiet then
            transient=heading is not None,
            disable=not bar_wanted,
            speed_estimate_period=math.inf,
        )
        self.task = self.bar.add_task("", total=steps, loss=math.nan)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.bar.reset(self.task, completed=trainer.global_step)
        self.bar.start()

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        if step % self.log_every == 0:
            losses = torch.stack([micro_batch["losses"]["train/loss"] for micro_batch in micro_batches])
            self.bar.update(self.task, loss=losses.mean().item())
        self.bar.update(self.task, completed=step)
        if self.prints_steps and step % self.print_every == 0:
            task = self.bar.tasks[0]
            left = "" if task.time_remaining is None else f"  {task.time_remaining:.0f} s left"
            line = f"step {step}/{self.max_steps}  loss {task.fields['loss']:.3f}{left}"
            self.console.print(line, highlight=False)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.prints_validations:
            metrics = trainer.callback_metrics  # what the module logs
            dropped = f"  dropped {metrics[DROPPED]:.1%}" if DROPPED in metrics else ""
            line = f"[bold]val/loss {metrics['val/loss']:.4f}[/bold]{dropped}"
            self.console.print(f"step {trainer.global_step}/{self.max_steps}  {line}", highlight=False)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.bar.stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.bar.stop()
