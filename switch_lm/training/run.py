"""One run from a checked configuration to its result: text, model, trainer, files."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.logging import RichHandler

from switch_lm.config.rules import ConfigError
from switch_lm.config.schema import Config
from switch_lm.measure.alarm import RouterAlarmError
from switch_lm.measure.ledger import run_ledger
from switch_lm.model.upcycle import upcycle
from switch_lm.storage.checkpoint import KEY, CheckpointError, read, read_model
from switch_lm.storage.files import remedy
from switch_lm.storage.run_folder import RESULT, RunFolder, TrainingError
from switch_lm.storage.runs import LAST, RunError, find_run, newest_whole
from switch_lm.text.corpus import Corpus, load_corpus
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.text.windows import split, too_short
from switch_lm.training import hparams, summary
from switch_lm.training.callbacks import checkpoints as saving
from switch_lm.training.callbacks import console as callbacks
from switch_lm.training.callbacks.routing_pictures import RoutingPictures
from switch_lm.training.callbacks.soft_stop import SoftStop
from switch_lm.training.callbacks.watch import RouterWatch, WindowLosses
from switch_lm.training.data import TextData
from switch_lm.training.hardware import Hardware, detect, keep_freed_memory
from switch_lm.training.module import SwitchModule
from switch_lm.training.nonfinite import NonFiniteError
from switch_lm.training.process_state import restored
from switch_lm.training.result import at_training_capacity, commit, computation, routing_figures, versions
from switch_lm.training.signals import StopSignals

LOG, LIGHTNING_LOG = "switch_lm", "lightning.pytorch"


@dataclass(frozen=True)
class Training:
    """Everything a run needs, made and checked, before the first step."""

    config: Config
    run: RunFolder
    first_step: int  # how many steps are done already
    corpus: Corpus
    hardware: Hardware
    module: SwitchModule
    data: TextData
    console: Console
    signals: StopSignals
    heading: str | None = None  # of a progress bar that is all a run shows; None: it prints its own text

    @classmethod
    @contextmanager
    def prepare(
        cls, config: Config, run: RunFolder, *, signals: StopSignals, heading: str | None = None
    ) -> Iterator[Training]:
        """A run that is checked and ready to `fit`, which is what writes and locks its folder.

        At the block's end the process is as before, except that the C library keeps freed memory. Errors: `train`.
        """
        with restored(LOG, LIGHTNING_LOG), torch.compiler.set_stance("default"):
            yield cls._checked(config, run, signals, heading)

    @classmethod
    def _checked(cls, config: Config, run: RunFolder, signals: StopSignals, heading: str | None) -> Training:
        """Fetches the text, chooses how to compute and makes the model; sets what `prepare` puts back."""
        _quiet_lightning()
        console = summary.make_console(quiet=config.logger.progress == "none" or heading is not None)
        _show_log(console)
        corpus = load_corpus(data_dir=Path(config.data.dir), path=Path(config.data.path) if config.data.path else None)
        vocabulary = Vocabulary.of(corpus.text)
        training_ids, validation_ids = split(vocabulary.encode(corpus.text))
        _check_text(config, len(training_ids), len(validation_ids))
        hardware = _hardware(config, run, len(vocabulary))
        torch.set_num_threads(hardware.threads)
        keep_freed_memory()
        torch.manual_seed(config.seed)
        module = SwitchModule(config, vocabulary, corpus_sha256=corpus.sha256, precision=hardware.precision)
        if config.init_from is not None:
            _start_from(config, module)
        first_step = _first_step(run, corpus)
        data = TextData(
            training_ids,
            validation_ids,
            batch_size=config.data.batch_size,
            context_length=config.model.context_length,
            seed=config.seed,
        )
        return cls(config, run, first_step, corpus, hardware, module, data, console, signals, heading)

    def fit(self) -> dict[str, Any]:
        """Makes the run's folder, trains to the last step and returns what it wrote to result.json. Errors: `train`."""
        with self.run.create(self.config, asdict(self.hardware)), self.signals:
            self._print_plan()
            try:
                result = self._train()
            except BrokenPipeError:  # of the console, as with `| head`
                raise
            except (NonFiniteError, RouterAlarmError, CheckpointError, OSError) as error:
                raise TrainingError(self._failed(error)) from error
        summary.print_result(self.console, result, run=self.run.path)
        return result

    def _print_plan(self) -> None:
        sizes = len(self.data.training_ids), len(self.data.validation_ids)
        vocab, source = len(self.module.vocabulary), self.corpus.source
        summary.print_plan(
            self.console, self.config, self.hardware, run=self.run.path, source=source, sizes=sizes, vocab=vocab
        )

    def _train(self) -> dict[str, Any]:
        config, module = self.config, self.module
        clock = callbacks.Clock(config.data.batch_size * config.model.context_length, config.logger.log_every)
        trainer = self._trainer(clock)
        if config.init_from is not None and self.run.resumes_from is None:
            trainer.validate(module, self.data, verbose=False)  # what the dense model's weights give, at step 0
        resumes_from = None if self.run.resumes_from is None else str(self.run.resumes_from)
        trainer.fit(module, self.data, ckpt_path=resumes_from)
        result = self._result(trainer, clock)
        self.run.write_json(RESULT, result)
        _log_hparams(module, result)
        return result

    def _failed(self, error: Exception) -> str:
        """Why training ended, what is left of it, and how to go on."""
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.filename or self.run.path} could not be written: {error.strerror or error}{remedy(error)}"
        if (left := newest_whole(self.run.checkpoints)) is None:
            return f"{reason}\nThere is no checkpoint yet."
        return f"{reason}\nThe last good checkpoint: {left} (to go on from it: resume={self.run.path.name})"

    def _trainer(self, clock: callbacks.Clock) -> lightning.Trainer:
        config = self.config
        # What was written after the checkpoint, or before there was one, is written again: TensorBoard must forget it.
        first = 0 if self.run.resumes_from is None else self.first_step + 1
        _wait_for_a_new_second(self.run.path)
        compiled = [callbacks.CompiledBlocks(self.console, self._cannot_compile)] if self.hardware.compile else []
        logger = TensorBoardLogger(
            self.run.path, name=None, version="", default_hp_metric=False, flush_secs=10, purge_step=first
        )
        trainer = lightning.Trainer(
            accelerator="gpu" if self.hardware.device == "cuda" else "cpu",
            devices=1,
            precision=self.hardware.autocast,  # type: ignore[arg-type]
            max_steps=config.trainer.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=config.trainer.accumulate,
            val_check_interval=config.trainer.val_every * config.trainer.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=logger,
            log_every_n_steps=config.logger.log_every,
            plugins=[saving.AtomicCheckpointIO()],
            callbacks=[
                clock,
                callbacks.ConsoleProgress(config, self.console, heading=self.heading),
                callbacks.Dashboard(config),
                callbacks.Samples(config.logger.sample_prompt, config.logger.sample_length, config.seed),
                WindowLosses(self.data.validation_ids, config),
                RoutingPictures(self.data.validation_ids, config),
                RouterWatch(self.data.training_ids, config),
                *compiled,
                *saving.checkpoints(self.run.checkpoints, config.trainer),
                SoftStop(self.run.checkpoints / LAST, config.trainer, self.signals),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # Lightning's own handlers would end a run with exit code 0 (SIGTERM) or 1 (Ctrl-C), and save nothing.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return trainer

    def _cannot_compile(self, reason: str) -> None:
        self.run.store_hardware(asdict(replace(self.hardware, compile=False, compile_reason=reason)))

    def _result(self, trainer: lightning.Trainer, clock: callbacks.Clock) -> dict[str, Any]:
        best = trainer.checkpoint_callback.best_model_score  # type: ignore[union-attr]
        config, module, vocab = self.config, self.module, len(self.module.vocabulary)
        return {
            "name": self.run.path.name,
            "val_loss": module.validation.loss,
            "best_val_loss": module.validation.loss if best is None else float(best),
            **at_training_capacity(module, self.data.validation_ids),
            "steps": trainer.global_step,
            "seconds": clock.seconds,
            "training_seconds": clock.step_seconds,
            "tokens_per_second": clock.tokens_per_second,
            "parameters": config.model.num_params(vocab),
            "active_parameters": config.model.num_active_params(vocab),
            **routing_figures(module),
            **_watched(trainer),
            "computation": computation(config, vocab, module.drops.whole_run_L),
            "corpus_sha256": self.corpus.sha256,
            "seed": config.seed,
            "hardware": self.run.stored_hardware(),
            "versions": versions(),
            "commit": commit(),
        }


def _watched(trainer: lightning.Trainer) -> dict[str, Any]:
    """The alarms there were, and the seconds that looking at routers and windows, and drawing, took."""
    found: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RouterWatch):
            found |= {"router_alarms": list(callback.alarm.messages), "router_health_seconds": callback.seconds}
        elif isinstance(callback, WindowLosses):
            found |= {"window_loss_seconds": callback.seconds}
        elif isinstance(callback, RoutingPictures):
            found |= {"routing_pictures_seconds": callback.seconds}
    return found


def _show_log(console: Console) -> None:
    """Shows the package's own log, such as a download, as plain lines."""
    log = logging.getLogger(LOG)
    log.handlers = [RichHandler(logging.INFO, console, show_time=False, show_level=False, show_path=False)]
    log.setLevel(logging.INFO)


def _quiet_lightning() -> None:
    """Silences Lightning's hints that do not apply, such as more workers for batches made in microseconds."""
    logging.getLogger(LIGHTNING_LOG).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*Checkpoint directory .* exists and is not empty.*",
                 ".*isinstance.treespec, LeafSpec.. is deprecated.*"):  # fmt: skip
        warnings.filterwarnings("ignore", message=text)


def _check_text(config: Config, num_training: int, num_validation: int) -> None:
    problem = too_short(num_training, num_validation, context_length=config.model.context_length)
    if problem is not None:
        raise ConfigError(problem)


def _start_from(config: Config, module: SwitchModule) -> None:
    """Gives the model the weights of the dense run `init_from`; ConfigError says why it can't."""
    try:
        dense, header = read_model(find_run(config.init_from, Path(config.outputs)))
        if header.vocabulary != module.vocabulary.characters:
            raise ValueError("it was trained on other characters; use the same text for both")
        upcycle(module.model, dense)
    except (RunError, CheckpointError, ValueError) as error:
        raise ConfigError(f"init_from={config.init_from}: {error}") from error


def _hardware(config: Config, run: RunFolder, vocab_size: int) -> Hardware:
    """As stored with the run, or with an earlier job of its sweep; else as detected."""
    if (stored := run.stored_hardware()) is not None:
        return Hardware(**stored)
    if config.trainer.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: there is no usable GPU here; use trainer.device=auto")
    return detect(config, training_flops=run_ledger(config, vocab_size=vocab_size).training)


def _first_step(run: RunFolder, corpus: Corpus) -> int:
    """How many steps are done; ConfigError if the checkpoint to go on from was trained on another text."""
    if run.resumes_from is None:
        return 0
    try:
        content = read(run.resumes_from)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if (trained_on := content[KEY]["corpus_sha256"]) != corpus.sha256:
        raise ConfigError(
            f"{run.resumes_from} was trained on the text with sha256 {trained_on}, and {corpus.source} has "
            f"{corpus.sha256}; give that text with data.path=FILE, or start a new run with another name"
        )
    if run.damaged is not None:
        print(f"warning: {run.damaged}; going on from {run.resumes_from}", file=sys.stderr)
    return int(content["global_step"])


def _wait_for_a_new_second(run: Path) -> None:
    """TensorBoard reads event files by name, which begins with the second: what goes on must come after what was."""
    newest = max((int(path.name.split(".")[3]) for path in run.glob("events.out.tfevents.*")), default=0)
    if 0 <= time.time() - newest < 1:
        time.sleep(newest + 1 - time.time())


def _log_hparams(module: SwitchModule, result: dict[str, Any]) -> None:
    module.write(hparams.metrics(result), result["steps"])
    if module.writer is not None:
        module.writer.close()
