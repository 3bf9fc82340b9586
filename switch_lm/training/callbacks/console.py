"""What happens around training: clock, progress, samples, compiling."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from switch_lm.config.schema import Config
from switch_lm.generation.sampling import generate
from switch_lm.measure.ledger import ledger_table, run_ledger
from switch_lm.measure.metrics import chart_layout
from switch_lm.training import hparams
from switch_lm.training.callbacks.checkpoints import step_ends
from switch_lm.training.hardware import compile_blocks


class Clock(Callback):
    """Seconds of the run and of its training steps alone, kept across restarts."""

    def __init__(self, tokens_per_batch: int, log_every: int) -> None:
        self.tokens_per_batch, self.log_every = tokens_per_batch, log_every
        self.total_seconds = self.step_seconds = 0.0
        self.batches = 0
        self._resumed_at = self._batch_started = time.perf_counter()
        self._logged_seconds, self._logged_batches = 0.0, 0

    @property
    def tokens_per_second(self) -> float:
        """Training tokens over the time of training steps; validation, samples and compiling are not in it."""
        return self.batches * self.tokens_per_batch / self.step_seconds if self.step_seconds else 0.0

    @property
    def seconds(self) -> float:
        """Everything between the start of fit and now."""
        return self.total_seconds + time.perf_counter() - self._resumed_at

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._resumed_at = time.perf_counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batch_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step_seconds += time.perf_counter() - self._batch_started
        self.batches += 1
        if step_ends(trainer, batch_idx) and trainer.global_step % self.log_every == 0:
            seconds, batches = self.step_seconds - self._logged_seconds, self.batches - self._logged_batches
            pl_module.write({"perf/tokens_per_second": batches * self.tokens_per_batch / seconds}, trainer.global_step)
            self._logged_seconds, self._logged_batches = self.step_seconds, self.batches

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        pl_module.write({"perf/training_seconds": self.step_seconds}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"total_seconds": self.seconds, "step_seconds": self.step_seconds, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_seconds = state_dict["total_seconds"]
        self.step_seconds = self._logged_seconds = state_dict["step_seconds"]
        self.batches = self._logged_batches = state_dict["batches"]


class Dashboard(Callback):
    """What TensorBoard needs once a run: the charts' layout, the configuration, a row among the hyperparameters."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if (writer := pl_module.writer) is None or trainer.global_step > 0:
            return
        writer.add_custom_scalars(chart_layout(self.config.model.num_switch_layers))
        text = OmegaConf.to_yaml(OmegaConf.structured(self.config))
        writer.add_text("configuration", "\n".join("    " + line for line in text.splitlines()))
        writer.add_text("computation", ledger_table(self.config, len(pl_module.vocabulary)))
        trainer.logger.log_hyperparams(hparams.row(self.config), hparams.NO_METRICS)  # type: ignore[union-attr]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The computation so far, for curves of loss against it."""
        a_step = run_ledger(self.config, vocab_size=len(pl_module.vocabulary)).per_step
        pl_module.write({"perf/training_tflop": 1e-12 * a_step * trainer.global_step}, trainer.global_step)


class CompiledBlocks(Callback):
    """Trains with compiled blocks, which takes half the time of compiling the model.

    They are compiled before the first step by a pass whose gradient is thrown away. Only training steps run compiled;
    all that happens between them, where shapes vary, runs eagerly. Where the compiler fails, the steps run eagerly
    too, and the console says why.
    """

    def __init__(self, console: Console, on_failure: Callable[[str], None]) -> None:
        self.console, self.on_failure, self.failed = console, on_failure, False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.console.print("compiling the training step (up to a minute the first time) ...")
        started = time.perf_counter()
        compile_blocks(pl_module.model)
        try:
            with trainer.precision_plugin.train_step_context():
                pl_module.warm_up()
        except Exception as error:  # the compiler's errors share no base class
            self.failed, reason = True, f"failed: {' '.join(str(error).splitlines()[:2])[:200]}"
            self.console.print(f"compiling {reason}\ngoing on without", markup=False)
            self.on_failure(reason)
        else:
            self.console.print(f"compiled in {time.perf_counter() - started:.0f} s", highlight=False)
        finally:
            torch.compiler.set_stance("force_eager")  # until the run's end, where `Training.prepare` puts it back

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.failed:
            torch.compiler.set_stance("default")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        torch.compiler.set_stance("force_eager")


class Samples(Callback):
    """Writes a sample of the model's text to TensorBoard after each validation; training is not touched by it."""

    def __init__(self, prompt: str, length: int, seed: int) -> None:
        self.prompt, self.length, self.seed = prompt, length, seed

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if (writer := pl_module.writer) is None or self.length == 0:
            return
        known = "".join(c for c in self.prompt if c in pl_module.vocabulary.characters)
        prompt = known or pl_module.vocabulary.characters[0]
        text = prompt + "".join(
            generate(pl_module.model, pl_module.vocabulary, prompt, length=self.length, seed=self.seed)
        )
        writer.add_text("sample", "\n".join("    " + line for line in text.splitlines()), trainer.global_step)


class ConsoleProgress(Callback):
    """A live bar on a terminal, plain lines elsewhere; a line stays for each validation.

    With a heading, the bar alone, which is gone at the end.
    """

    def __init__(self, config: Config, console: Console, *, heading: str | None = None) -> None:
        style = config.logger.progress
        self.bar_wanted = style == "bar" or (style == "auto" and sys.stdout.isatty())
        self.silent = style == "none" or heading is not None
        self.heading = heading
        self.every = config.logger.log_every
        self.console, self.max_steps = console, config.trainer.max_steps
        self.bar: Progress | None = None
        self.task: Any = None
        self.started, self.first_step, self.loss = time.perf_counter(), 0, float("nan")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        if self.bar_wanted:
            words = TextColumn(self.heading or "training", markup=False)
            columns = (
                words, BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            console = self.console if self.heading is None else Console()  # the run's own is quiet then
            self.bar = Progress(*columns, console=console, transient=self.heading is not None)
            self.task = self.bar.add_task("", total=self.max_steps, completed=trainer.global_step, loss=self.loss)
            self.bar.start()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.first_step:
            self.started = time.perf_counter()  # what compiling took is not to be expected of the steps that follow

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not step_ends(trainer, batch_idx):
            return
        step = trainer.global_step
        if step % self.every == 0:
            self.loss = pl_module.language_loss
        if self.bar is not None:
            self.bar.update(self.task, completed=step, loss=self.loss)
        elif not self.silent and self._line_is_due(step):
            rate = (time.perf_counter() - self.started) / (step - self.first_step)
            left = (self.max_steps - step) * rate
            self.console.print(
                f"step {step}/{self.max_steps}  loss {self.loss:.3f}  {left:.0f} s left", highlight=False
            )

    def _line_is_due(self, step: int) -> bool:
        return step > self.first_step and step % max(self.every, self.max_steps // 20 // self.every * self.every) == 0

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self.silent:
            loss = float(trainer.callback_metrics["val/loss"])
            dropped = (
                f"  dropped {pl_module.drops.last_stretch:.1%}" if pl_module.config.model.num_switch_layers else ""
            )
            line = f"step {trainer.global_step}/{self.max_steps}  [bold]val/loss {loss:.4f}[/bold]{dropped}"
            self.console.print(line, highlight=False)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
