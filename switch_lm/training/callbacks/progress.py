"""The progress of a run: a live bar on a terminal, one line in a notebook, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from switch_lm.config.durations import in_words
from switch_lm.config.schema import Config, TrainerConfig
from switch_lm.model import devices
from switch_lm.training.callbacks.base import MicroBatch, StepCallback

DROPPED = "moe/dropped_share"
TRAINING = "training"
SILENCE = 10.0  # seconds in a validation without a line
BLINK, CELLS, LINE = 0.25, 20, 110  # in a notebook: seconds between two lines, their bar, their width
ENOUGH, SOON, LONG = 2, 0.5, 10.0  # steps after the first one and their seconds; or seconds of whatever was done
FORWARD = 1 / 3  # of a step's time, until a validation was measured: the backward pass costs twice the forward pass


class TimeLeft:
    """The seconds that a run still takes: its steps, its validations and the last evaluation, each at its own speed."""

    def __init__(self, config: TrainerConfig, *, num_batches: int) -> None:
        self.config, self.num_batches = config, num_batches  # of one validation
        self._step, self._batch, self._steps = [0.0, 0], [0.0, 0], 0  # seconds, how many
        self._since, self._validated = time.perf_counter(), False

    def begin_step(self) -> None:
        """The time since the last batch of a validation counts as validation."""
        if self._validated:
            self._batch[0] += self._lap()
            self._validated = False

    def end_step(self) -> None:
        """The first step, which is slower, counts only until there is another."""
        seconds, count = (0.0, 0.0) if self._steps == 1 else self._step
        self._step, self._steps = [seconds + self._lap(), count + 1], self._steps + 1

    def end_batch(self) -> None:
        """Of a validation."""
        self._batch = [self._batch[0] + self._lap(), self._batch[1] + 1]
        self._validated = True

    def _lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def is_known(self, step: int, *, log_every: int, device: torch.device) -> bool:
        """Whether the steps so far say enough of the others. A GPU's are over only where they are logged."""
        if not devices.is_cpu(device) and (self._steps < 2 * log_every or step % log_every):
            return False
        return (self._steps > ENOUGH and self._step[0] > SOON) or self._step[0] > LONG

    @property
    def per_step(self) -> float:
        """Seconds; NaN before the first step."""
        return self._step[0] / self._step[1] if self._step[1] else math.nan

    def seconds(self, step: int, *, batches_left: int = 0) -> float:
        """After so many steps, with `batches_left` beside those to come; NaN before anything was measured."""
        config, steps = self.config, self.config.max_steps
        last_is_extra = step < steps and steps % config.val_every > 0
        passes = steps // config.val_every - step // config.val_every + last_is_extra + 1  # the last evaluation
        per_step = self.per_step
        per_batch = self._batch[0] / self._batch[1] if self._batch[1] else FORWARD * per_step / config.accumulate
        in_steps = (steps - step) * per_step if step < steps else 0.0
        return in_steps + (passes * self.num_batches + batches_left) * per_batch


class Times(ProgressColumn):
    """The time that has passed, and below it the time that is left."""

    def render(self, task: Task) -> Text:
        return Text(f"{elapsed(task)}\n{task.fields['left']}")


class ConsoleProgress(StepCallback):
    """A bar or lines, and a line that stays for each validation. With a heading, only a bar that goes at the end."""

    def __init__(
        self,
        config: Config,
        console: Console,
        *,
        num_batches: int,
        heading: str | None = None,
        line: Callable[[float], str] | None = None,
    ) -> None:
        """`line`: what to print once, early, of the seconds that are left."""
        self.line = line
        style, steps, every = config.logger.progress, config.trainer.max_steps, config.logger.log_every
        bar_wanted = style == "bar" or (style == "auto" and sys.stdout.isatty())
        # Not rich's bar, which needs widgets there: a line that is written over, as every notebook shows it.
        self.in_notebook = style == "auto" and heading is None and not bar_wanted and "ipykernel" in sys.modules
        self.prints_validations = style != "none" and heading is None and not self.in_notebook
        self.prints_steps = self.prints_validations and not bar_wanted
        self.log_every, self.print_every = every, max(every, steps // 20 // every * every)
        self.console, self.max_steps, self.heading = console, steps, heading or TRAINING
        self.averages = len(config.optim.averages)  # of the weights: so many passes more in the last validation
        self.left, self.printed_at = TimeLeft(config.trainer, num_batches=num_batches), time.monotonic()
        trainer, context_length = config.trainer, config.model.context_length
        self.characters = trainer.accumulate * config.data.batch_size * context_length  # in a step
        columns = (
            TextColumn("{task.description}\n{task.fields[speed]}", markup=False), BarColumn(None), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}\n{task.fields[validation]}"), Times(),
        )  # fmt: skip
        self.bar = Progress(
            *columns,
            console=console if heading is None else Console(),  # the run's own is quiet then
            transient=heading is not None,
            disable=not bar_wanted,
        )
        self.task = self.bar.add_task(self.heading, total=steps, loss="", validation="", speed="", left="")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.bar.reset(self.task, completed=trainer.global_step)
        self.bar.start()
        self.left = TimeLeft(self.left.config, num_batches=self.left.num_batches)  # from now on
        pl_module.on_measured = lambda done, of: self.measured(pl_module, done, of)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.left.begin_step()

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        self.left.end_step()
        if step % self.log_every == 0:
            losses = torch.stack([micro_batch["losses"]["train/loss"] for micro_batch in micro_batches])
            speed = f"{self.characters / self.left.per_step:,.0f} characters/s"
            self.bar.update(self.task, loss=f"training loss {losses.mean().item():.3f}", speed=speed)
        passes = module.config.trainer.validates(step) + self.averages
        seconds = self.left.seconds(step, batches_left=self.left.num_batches * passes)
        if self.line is not None and self.left.is_known(step, log_every=self.log_every, device=module.device):
            line, self.line = self.line(seconds), None
            if self.prints_validations:
                self._print(line)
        left = left_in_words(seconds)
        self.bar.update(self.task, completed=step, description=self.heading, left=left)
        if self.prints_steps and step % self.print_every == 0:
            fields = self.bar.tasks[0].fields
            self._print_step(step, fields["loss"], fields["validation"], fields["speed"], left=left)
        if time.monotonic() - self.printed_at > BLINK:
            self._print_over(step)

    def measured(self, module: Any, done: int, of: int) -> None:
        """`done` batches of a validation, or of the last evaluation, with the capacity of training; `of` in a pass."""
        self.left.end_batch()
        step, validation = module.global_step, module.validation
        averages = 0 if validation.is_done else self.averages
        under_way = of * (1 + averages) - done - of * validation.is_done  # the last evaluation is among those to come
        left = left_in_words(self.left.seconds(step, batches_left=under_way))
        what = "evaluating with the capacity of training" if validation.is_done else "validating"
        share = done / of / (1 + averages * (step == self.max_steps))
        begins = "" if self.heading == TRAINING else f"{self.heading}, "
        self.bar.update(self.task, description=f"{begins}{what.split()[0]} {share:.0%}", left=left)
        if self.prints_steps and time.monotonic() - self.printed_at > SILENCE:
            self._print_step(step, f"{what}: {share:.0%}", left=left)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics  # what the module logs
        self.bar.update(self.task, validation=f"validation loss {metrics['val/loss']:.3f}")
        self._print_over(trainer.global_step)
        if self.prints_validations:
            dropped = f"dropped {metrics[DROPPED]:.1%}" if DROPPED in metrics else ""
            self._print_step(trainer.global_step, f"[bold]val/loss {metrics['val/loss']:.4f}[/bold]", dropped)

    def _print_step(self, step: int, *parts: str, left: str = "") -> None:
        known = f"step {step}/{self.max_steps}", *parts, elapsed(self.bar.tasks[0]), left
        self._print("  ".join(filter(None, known)))

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False)
        self.printed_at = time.monotonic()

    def _print_over(self, step: int) -> None:
        """In a notebook alone: the line of the run so far, in place of the one before."""
        if self.in_notebook:
            fields, done = self.bar.tasks[0].fields, "█" * (step * CELLS // self.max_steps)
            shown = f"{done:░<{CELLS}} step {step}/{self.max_steps}", fields["loss"], fields["validation"]
            left = fields["left"] if step < self.max_steps else ""
            print(f"\r{'  '.join(filter(None, [*shown, left])):<{LINE}}", end="", flush=True)
            self.printed_at = time.monotonic()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.bar.stop()
        if self.in_notebook:
            print(flush=True)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.bar.stop()


def left_in_words(seconds: float) -> str:
    """Empty where it is not known."""
    return "" if math.isnan(seconds) else f"left {in_words(seconds)}"


def elapsed(task: Task) -> str:
    """Hours, minutes and seconds since the run was started or resumed."""
    return f"elapsed {timedelta(seconds=int(task.elapsed or 0.0))}"
