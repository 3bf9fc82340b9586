"""What a run needs before its first step, made and checked: text, hardware, model and data."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.logging import RichHandler

from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import run_ledger
from switch_lm.model.upcycle import upcycle
from switch_lm.storage.checkpoint import KEY, CheckpointError, read, read_model
from switch_lm.storage.run_folder import RunFolder
from switch_lm.storage.runs import RunError, find_run
from switch_lm.text.characters import named
from switch_lm.text.corpus import Corpus, load_corpus
from switch_lm.text.splits import Split
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.text.windows import too_short
from switch_lm.training.data import TextData
from switch_lm.training.hardware import (
    Hardware,
    change_of_device,
    changes_bits,
    detect,
    one_thread_is_faster,
    require_memory,
)
from switch_lm.training.module import SwitchModule
from switch_lm.training.process_state import restored
from switch_lm.training.signals import StopSignals

LOG, LIGHTNING_LOG = "switch_lm", "lightning.pytorch"
LINE_WIDTH = 120  # where the console is no terminal


@dataclass(frozen=True)
class Training:
    """A run that is ready for its first step."""

    config: Config
    run: RunFolder
    first_step: int  # how many steps are done already
    log_from: tuple[int, int]  # the first step whose figures are written again, but for so many of the first rows
    corpus: Corpus
    split: Split  # of the corpus
    hardware: Hardware
    module: SwitchModule
    data: TextData
    console: Console
    signals: StopSignals
    heading: str | None = None  # of a progress bar that is all a run shows; None: it prints its own text
    started: float = 0.0  # when the command began, by `time.monotonic`
    again: bool = False  # whether a budget has chosen the steps, and said what there is to say

    @property
    def vocab_size(self) -> int:
        return len(self.module.vocabulary)


@contextmanager
def prepare(
    config: Config,
    run: RunFolder,
    *,
    signals: StopSignals,
    heading: str | None = None,
    started: float | None = None,
    again: bool = False,
    hardware: Hardware | None = None,
) -> Iterator[Training]:
    """Fetches the text, chooses how to compute and makes the model; nothing is written or locked yet.

    At the block's end the process is as before. Errors: `train`. `started` (None: now), `again`: those of `Training`.
    `hardware`: what the first of several processes has chosen; None: it is chosen here.
    """
    started = time.monotonic() if started is None else started
    with restored(), torch.compiler.set_stance("default"):
        quiet = config.logger.progress == "none" or heading is not None
        console = Console(quiet=quiet, width=None if sys.stdout.isatty() else LINE_WIDTH, force_jupyter=False)
        _set_up_logs(console)
        wanted = config.data
        corpus = load_corpus(
            data_dir=Path(wanted.dir), path=Path(wanted.path) if wanted.path else None, text=wanted.text
        )
        vocabulary = Vocabulary(corpus.characters, corpus.start)
        split = Split.of(corpus, split=wanted.split, hold_out=wanted.hold_out)
        training_ids, validation_ids = split.training_ids(corpus), split.validation_ids(corpus)
        context_length = config.model.context_length
        if problem := too_short(len(training_ids), len(validation_ids), context_length=context_length):
            raise ConfigError(problem)
        if not again and training_ids.min() == training_ids.max():
            only = named(corpus.characters[int(training_ids[0])])
            print(f"warning: every character to train on is {only}: there is nothing to learn", file=sys.stderr)
        if hardware is None:
            hardware = _hardware_of(config, run, vocab_size=len(vocabulary), says_what_is_slow=not again)
        torch.set_num_threads(hardware.threads)
        torch.manual_seed(config.seed)
        module = SwitchModule(config, vocabulary, corpus_sha256=corpus.sha256, precision=hardware.precision)
        counts_V = training_ids.bincount(minlength=len(vocabulary))
        module.model.prepare_routers(counts_V, max_steps=config.trainer.max_steps)
        if config.init_from is not None:
            _start_from(config, module)
        first_step, log_from = _first_step(run, corpus)
        data = TextData(
            training_ids,
            validation_ids,
            batch_size=config.data.batch_size,
            context_length=context_length,
            seed=config.seed,
        )
        yield Training(
            config, run, first_step, log_from, corpus, split, hardware, module, data, console, signals,
            heading, started, again,
        )  # fmt: skip


def _hardware_of(config: Config, run: RunFolder, *, vocab_size: int, says_what_is_slow: bool) -> Hardware:
    """How the run computes here. ConfigError if it cannot."""
    stored = run.hardware_so_far()
    hardware = detect(config, training_flops=run_ledger(config, vocab_size=vocab_size).training, stored=stored)
    if stored and (note := _moved(config, run, hardware, stored)):
        print(f"warning: {run.path}: {note}", file=sys.stderr)
    require_memory(config, hardware.device, vocab_size)
    threads = hardware.threads
    if says_what_is_slow and hardware.device == "cpu" and threads > 1 and one_thread_is_faster(config, threads):
        print("warning: one thread would be faster here: trainer.threads=1", file=sys.stderr)
    return hardware


def _moved(config: Config, run: RunFolder, hardware: Hardware, stored: dict[str, Any]) -> str | None:
    """In what the run computes otherwise than its steps so far, or, unasked, than the earlier jobs of its sweep."""
    if run.resumes_from is not None:
        return changes_bits(hardware, stored)
    if config.trainer.device != "auto" or (change := change_of_device(hardware, stored)) is None:
        return None
    return f"{change}: the result will not be bit-identical to that of the sweep's other jobs on its first device"


def _set_up_logs(console: Console) -> None:
    """Shows the package's own log, such as a download, and silences Lightning's hints, which do not apply here."""
    log = logging.getLogger(LOG)
    log.handlers = [RichHandler(logging.INFO, console, show_time=False, show_level=False, show_path=False)]
    log.setLevel(logging.INFO)
    logging.getLogger(LIGHTNING_LOG).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*Checkpoint directory .* exists and is not empty.*",
                 "TensorFloat32 tensor cores .*",  # float32 is exact here on purpose
                 "It is recommended to use .self.log.*sync_dist",  # each process has the same figures
                 ".*isinstance.treespec, LeafSpec.. is deprecated.*"):  # fmt: skip
        warnings.filterwarnings("ignore", message=text)


def _start_from(config: Config, module: SwitchModule) -> None:
    """Gives the model the weights of the dense run `init_from`; ConfigError if that is impossible."""
    try:
        dense, header = read_model(find_run(config.init_from, Path(config.outputs)))
        if header.vocabulary != module.vocabulary.characters:
            raise ValueError("it was trained on other characters; use the same text for both")
        upcycle(module.model, dense)
    except (RunError, CheckpointError, ValueError) as error:
        raise ConfigError(f"init_from={config.init_from}: {error}") from error


def _first_step(run: RunFolder, corpus: Corpus) -> tuple[int, tuple[int, int]]:
    """How many steps are done, and `Training.log_from`.

    ConfigError if the checkpoint to continue from was trained on another text.
    """
    if run.resumes_from is None:
        return 0, (0, 0)
    try:
        content = read(run.resumes_from)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if content[KEY]["vocabulary"] != corpus.characters and content[KEY]["corpus_sha256"] == corpus.sha256:
        rule = "which read byte order marks as characters"
        raise ConfigError(
            f"{run.resumes_from} was written by an older version, {rule}; start a new run with another name"
        )
    if (trained_on := content[KEY]["corpus_sha256"]) != corpus.sha256:
        raise ConfigError(
            f"{run.resumes_from} was trained on the text with sha256 {trained_on}, and {corpus.source} has "
            f"{corpus.sha256}; give that text with data.path=FILE, or start a new run with another name"
        )
    if run.damaged is not None:
        print(f"warning: {run.damaged}; continuing from {run.resumes_from}", file=sys.stderr)
    step = int(content["global_step"])
    first_step, kept = content.get("log_from", (step + 1, 0))
    return step, (first_step, kept)
