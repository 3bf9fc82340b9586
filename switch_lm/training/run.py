"""Runs a training that is prepared, to its last step and its result."""

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback

from switch_lm.measure.alarm import RouterAlarmError
from switch_lm.model import devices
from switch_lm.storage import choice
from switch_lm.storage.checkpoint import CheckpointError
from switch_lm.storage.files import remedy
from switch_lm.storage.run_folder import RESULT, RunFolder, TrainingError
from switch_lm.storage.runs import newest_whole
from switch_lm.training import forecast
from switch_lm.training.callbacks import (
    averages,
    checkpoints,
    clock,
    compiling,
    dashboard,
    progress,
    router_watch,
    routing_pictures,
    step_scalars,
    window_losses,
)
from switch_lm.training.log import BoardError, Log
from switch_lm.training.nonfinite import NonFiniteError
from switch_lm.training.parallel.group import Group
from switch_lm.training.parallel.start import together
from switch_lm.training.parallel.strategy import AveragedGradients, Processes, devices_of
from switch_lm.training.parallel.watch import LostProcessError
from switch_lm.training.prepare import Training
from switch_lm.training.result import result_of
from switch_lm.training.saving import Saving
from switch_lm.training.summary import print_result

FAILURES = (NonFiniteError, RouterAlarmError, CheckpointError, BoardError, LostProcessError, OSError, MemoryError)


def fit(training: Training, meeting: Any = None) -> dict[str, Any]:
    """Makes the run's folder, trains to the last step and returns what it wrote to result.json. Errors: `train`.

    `meeting`: that of `together`.
    """
    config = training.config
    run, lock = choice.create(training.run, config, asdict(training.hardware))
    training, training.signals.run = replace(training, run=run), run.path
    with lock, training.signals:
        forecast.show_plan(training)
        try:
            forecast.say_before_compiling(training)
            result = _train(training, meeting)
        except FAILURES as error:
            raise TrainingError(_failed(run, error)) from error
        except RuntimeError as error:
            if devices.no_memory(error) is None:
                raise
            raise TrainingError(_failed(run, error)) from error
    prompt = training.corpus.prompt(config.model.context_length)
    print_result(training.console, result, config, run=run.path, prompt=prompt)
    return result


def _train(training: Training, meeting: Any) -> dict[str, Any]:
    run, module = training.run, training.module
    first_step, kept = training.log_from
    with (
        together(training, meeting) as group,
        Log.open(run.path, training.config, first_step=first_step, kept=kept) as log,
    ):
        module.group, module.run_log = group, log
        module.saving = Saving(run.checkpoints, training.config.trainer, training.signals, group)
        trainer = trainer_of(training, group)
        if training.hardware.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            if training.config.trainer.cuda_graph and group.size == 1 and training.config.balance_over != "step":
                module.record_steps()
        trainer.fit(module, training.data, ckpt_path=run.resumes_from)
        result = result_of(training, trainer)
        run.write_json(RESULT, result)
    return result


def _failed(run: RunFolder, error: Exception) -> str:
    """Why training ended, the last good checkpoint, and how to continue."""
    reason = str(error)
    if isinstance(error, OSError):
        reason = f"{error.filename or run.path} could not be written: {error.strerror or error}{remedy(error)}"
    if (problem := devices.no_memory(error)) is not None:
        reason = f"{problem}; {devices.SMALLER}"
    if (left := newest_whole(run.checkpoints)) is None:
        return f"{reason}\nThere is no checkpoint yet: start it again, with the same name if it had one."
    return f"{reason}\nThe last good checkpoint: {left} (to continue from it: resume={run.path.name})"


def callbacks_of(training: Training) -> list[Callback]:
    """What happens around the steps, in any order."""
    config, run, data = training.config, training.run, training.data
    return [
        clock.Clock(config),
        step_scalars.StepScalars(config),
        progress.ConsoleProgress(
            config,
            training.console,
            num_batches=-(-len(data.validation_batches) // config.trainer.processes),
            heading=training.heading,
            line=forecast.line_for(training),
        ),
        dashboard.Dashboard(),
        dashboard.Samples(),
        window_losses.WindowLosses(data.validation_ids, config),
        routing_pictures.RoutingPictures(data.validation_ids, config),
        router_watch.RouterWatch(data.training_ids, config),
        *([averages.Averages(config, data)] if config.optim.averages else []),
        *_compiling(training),
        *checkpoints.best_checkpoints(run.checkpoints, config.trainer),
    ]


def _compiling(training: Training, *, stores: bool = True) -> list[Callback]:
    """What each process does by itself around the steps. `stores`: whether that it failed is stored with the run."""

    def cannot_compile(reason: str) -> None:
        if not stores:
            return
        training.run.store_hardware(asdict(replace(training.hardware, compile=False, compile_reason=reason)))

    return [compiling.CompiledBlocks(training.console, cannot_compile)] if training.hardware.compile else []


def trainer_of(training: Training, group: Group) -> lightning.Trainer:
    """Of this process of the run. The first one has all callbacks; the others only train."""
    config, alone = training.config, group.size == 1
    trainer = lightning.Trainer(
        accelerator="gpu" if training.hardware.device == "cuda" else training.hardware.device,
        devices=1 if alone else devices_of(training.hardware.device, group),
        strategy="auto" if alone else AveragedGradients(),
        use_distributed_sampler=False,
        precision="bf16-mixed" if training.hardware.precision == "bf16" else "32-true",
        # Lightning would not even begin with a run that was stopped after its last step: the module ends it.
        max_steps=config.trainer.max_steps + (training.first_step >= config.trainer.max_steps),
        max_epochs=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        val_check_interval=sys.maxsize,  # never: the module validates
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        # not SLURM's, LSF's or Kubeflow's environment
        plugins=[
            checkpoints.AtomicCheckpointIO(partial(training.run.begin_leg, config)),
            LightningEnvironment() if alone else Processes(group),
        ],
        callbacks=callbacks_of(training) if group.rank == 0 else _compiling(training, stores=False),
        enable_checkpointing=group.rank == 0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's own handlers would end a run with exit code 0 (SIGTERM) or 1 (Ctrl-C), and save nothing. There is no
    # public way: Trainer has no option to leave them out, and `fit` registers them itself, over ours.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
