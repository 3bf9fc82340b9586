"""Trains with compiled blocks, which takes half the time of compiling the model."""

import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from switch_lm.training.hardware import compile_blocks, compiler_of


class CompiledBlocks(Callback):
    """Compiles the blocks before the first step, by a pass whose gradient is thrown away.

    Only training steps run compiled; everything between them, where shapes vary, runs eagerly. If the compiler fails,
    the steps run eagerly too, and the console says why.
    """

    def __init__(self, console: Console, on_failure: Callable[[str], None]) -> None:
        self.console, self.on_failure, self.stance = console, on_failure, "default"  # of training steps

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step >= pl_module.config.trainer.max_steps:
            return
        self.console.print("compiling the training step (up to a minute the first time) ...")
        started = time.perf_counter()
        compile_blocks(pl_module.model)
        try:
            with trainer.precision_plugin.train_step_context():
                pl_module.warm_up()
        except Exception as error:  # the compiler's errors share no base class
            able, lacking = compiler_of(pl_module.device.type)
            what = " ".join(str(error).splitlines()[:2])[:200] if able else lacking
            self.stance, reason = "force_eager", f"failed: {what}"
            self.console.print(f"compiling {reason}\ncontinuing without it", markup=False)
            self.on_failure(reason)
        else:
            self.console.print(f"compiled in {time.perf_counter() - started:.0f} s", highlight=False)
        finally:
            torch.compiler.set_stance("force_eager")  # until the end, where `training.prepare.prepare` restores it

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.compiler.set_stance(self.stance)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        torch.compiler.set_stance("force_eager")
