"""How long the pieces of a run take on this machine, measured on a module that is thrown away."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from switch_lm.config.schema import Config
from switch_lm.generation.sampling import generate
from switch_lm.measure.evaluation import EvaluationTally, evaluate
from switch_lm.measure.ledger import run_ledger
from switch_lm.measure.router_health import router_health
from switch_lm.measure.scoring import character_by_character
from switch_lm.measure.tallies import DropTally
from switch_lm.model.transformer import evaluating
from switch_lm.routers.routing import Routing
from switch_lm.text.windows import fixed_windows
from switch_lm.training.callbacks.progress import FORWARD
from switch_lm.training.callbacks.router_watch import RouterWatch
from switch_lm.training.callbacks.routing_pictures import ATLAS_CHARACTERS, RoutingPictures
from switch_lm.training.callbacks.window_losses import EVERY
from switch_lm.training.data import Batch, TrainingBatches
from switch_lm.training.hardware import compile_blocks
from switch_lm.training.prepare import Training

# Measured with the default recipe on two cores with AVX512-BF16.
COMPILED = {"fp32": 0.9, "bf16": 0.8}  # the seconds of a compiled step over those of an eager one
OPTIMIZER = 1.16  # the seconds of a step over those of its passes
AROUND = 1.03  # the seconds of a step in a run, with Lightning and the log, over its own
# A step's time grows by half as much as its products: 10% where spread loads have 22% more of them than new routers'.
OF_PRODUCTS = 0.5
COMPILING = 30.0  # seconds, where nothing is cached
AGAIN = 0.1  # a second compilation in a process, over its first: 1.5 s after 31, or 1.2 after 4 from a cache
WRITTEN = 1e9  # bytes of checkpoints per second
REST = 2.5  # seconds for the boards, Lightning and the result

FEW = 8  # characters of a sample or of each window
MANY = 40  # steps, whose mean is good enough
SLOW = 2.0  # seconds of a step beside which the rest takes little, and would take long to measure


@dataclass(frozen=True)
class Pace:
    """Seconds of each piece of a run; what is not known takes none."""

    step: float
    batch: float  # of a validation
    num_batches: int
    compiled_step: float
    sample: float = 0.0
    pictures: float = 0.0
    windows: float = 0.0
    check: float = 0.0  # of the routers
    write: float = 0.0  # of a checkpoint
    compiling: float = COMPILING

    @classmethod
    def of_pass(cls, seconds: float, training: Training) -> "Pace":
        """Of a forward and backward pass of a micro-batch."""
        passes = 1 + FORWARD * (training.config.balance_over == "step")  # with one that counts
        step = OPTIMIZER * seconds * passes * training.config.trainer.accumulate
        compiled = step * COMPILED[training.hardware.precision]
        batches = -(-len(training.data.validation_batches) // training.config.trainer.processes)
        return cls(step, FORWARD * seconds, batches, compiled)

    def parts(self, config: Config, *, compiles: bool, done: int = 0) -> dict[str, float]:
        """The seconds of a run by what takes them, from step number `done` on, without the start of the process."""
        trainer, steps, every = config.trainer, config.trainer.max_steps, config.trainer.val_every
        left = max(0, steps - done)
        validations = steps // every - done // every + (left > 0 and steps % every > 0)
        validations += done == 0 and config.init_from is not None
        writes = left // trainer.checkpoint_every + 3 * validations  # before and after each, and the best
        checks = left // config.health.every if config.health.every else 0
        return {
            "steps": AROUND * left * (self.compiled_step if compiles else self.step) + checks * self.check,
            "compiling": self.compiling if compiles and left else 0.0,
            # and the last evaluation, and that of each average of the weights
            "validations": (validations + 1 + len(config.optim.averages)) * self.num_batches * self.batch
            + validations * (self.sample + self.pictures)
            + math.ceil(left / max(EVERY, every)) * self.windows,
            "the rest": writes * self.write + REST,
        }

    def seconds(self, config: Config, *, compiles: bool, done: int = 0) -> float:
        """The sum of `parts`."""
        return sum(self.parts(config, compiles=compiles, done=done).values())

    def times(self, work: float) -> "Pace":
        """Of a model whose step has so many times the products."""
        scaled = {name: work * getattr(self, name) for name in ("step", "compiled_step", "batch", "windows", "check")}
        return replace(self, **scaled)


def settling(training: Training, routings: Sequence[tuple[Routing, ...]]) -> float:
    """How many times as long a step takes once the routers have spread their load, from micro-batches with new ones.

    In float32 a CPU computes only the choices that are kept, and new routers drop a third.
    """
    drops = DropTally(training.config.model.num_switch_layers)
    for of_batch in routings:
        drops.add(of_batch)
    if training.hardware.device != "cpu" or training.hardware.precision == "bf16" or not any(drops.kept_L):
        return 1.0
    now = run_ledger(training.config, vocab_size=training.vocab_size, selected_L=drops.selected_L, kept_L=drops.kept_L)
    later = run_ledger(training.config, vocab_size=training.vocab_size)
    return 1.0 + OF_PRODUCTS * max(0.0, later.useful_per_step / now.useful_per_step - 1.0)


class Trial:
    """Times the pieces of a run on its module, which must not be trained afterwards. Random state changes too."""

    def __init__(self, training: Training) -> None:
        self.training, self.device = training, torch.device(training.hardware.device)
        self.module, self.config, self.number = training.module.to(self.device), training.config, 0
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.routings: list[tuple[Routing, ...]] = []  # of all steps
        data = training.data
        self.batches = TrainingBatches(
            data.training_ids, batch_size=data.batch_size, context_length=data.context_length, seed=data.seed,
            num_ranks=self.config.trainer.processes,
        )  # fmt: skip

    def eager(self, *, seconds: float) -> Pace:
        """Everything but compiling, of which nothing is known yet. The steps are timed for about so long."""
        step, config = self._mean(self._step, seconds), self.config
        step *= settling(self.training, self.routings)
        pace = Pace.of_pass(
            FORWARD * step if step > SLOW else step / OPTIMIZER / config.trainer.accumulate, self.training
        )
        num_params = sum(weight.numel() for weight in self.module.parameters())
        batch = pace.batch if step > SLOW else self._batch()
        pace = replace(
            pace, step=step, compiled_step=step * COMPILED[self.training.hardware.precision], batch=batch,
            sample=self._sample(), windows=self._windows() + 2 * batch,
            write=4 * num_params * (1 + config.optim.states_per_param + len(config.optim.averages)) / WRITTEN,
        )  # fmt: skip
        if not config.model.num_switch_layers:
            return pace
        share = ATLAS_CHARACTERS / (config.data.batch_size * config.model.context_length)
        return replace(pace, pictures=self._pictures() + share * batch, check=self._check())

    def compiled(self, pace: Pace, *, seconds: float) -> Pace:
        """The pace with compiled steps, and what compiling them once more takes."""
        compile_blocks(self.module.model)
        try:
            first = self._seconds(self._step)
            step = self._mean(self._step, seconds) * settling(self.training, self.routings)
            return replace(pace, compiled_step=step, compiling=AGAIN * first)
        except Exception:  # the compiler's errors share no base class: the run says what is wrong, and does without
            return replace(pace, compiled_step=pace.step, compiling=0.0)

    def _step(self) -> None:
        accumulate, routings = self.config.trainer.accumulate, []
        for _ in range(accumulate):
            batch = self.batches[self.number]
            if self.config.balance_over == "step":
                with self._as_in_a_run(), torch.no_grad():
                    self.module.model(batch.ids.to(self.device))
            with self._as_in_a_run():
                done = self.module.forward_pass(Batch(*(part.to(self.device) for part in batch)))
            (done["loss"] / accumulate).backward()
            routings.append(done["routings"])
            self.number += 1
        self.routings += routings
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for router, of_step in zip(self.module.model.routers, zip(*routings, strict=True), strict=True):
                router.after_step(of_step)

    def _as_in_a_run(self) -> AbstractContextManager[object]:
        """Exactly as in a run: otherwise the run's steps would be compiled again."""
        bf16 = self.training.hardware.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def _batch(self) -> float:
        model, config = self.config.model, self.config
        ids = self.training.data.validation_ids[: 2 * config.data.batch_size * model.context_length + 1]
        for tally in (EvaluationTally(), EvaluationTally()):  # the first call is slower
            evaluate(
                self.module.model, ids, context_length=model.context_length, batch_size=config.data.batch_size,
                capacity_factor=model.eval_capacity_factor, precision=self.training.hardware.precision, tally=tally,
            )  # fmt: skip
        return tally.seconds / tally.num_batches

    def _sample(self) -> float:
        model, vocabulary, length = self.module.model, self.module.vocabulary, self.config.logger.sample_length
        if length == 0:
            return 0.0
        some = self._seconds(lambda: list(generate(model, vocabulary, vocabulary.start, length=FEW)))
        return some * length / FEW

    def _windows(self) -> float:
        length = self.config.model.context_length
        ids_BS, target_BS = fixed_windows(
            self.training.data.validation_ids, context_length=length, num_windows=self.config.data.batch_size
        )
        few = ids_BS[:, :FEW].to(self.device), target_BS[:, :FEW].to(self.device)
        with evaluating(self.module.model):
            some = self._seconds(lambda: character_by_character(self.module.model, *few))
        return some * ids_BS.shape[1] / few[0].shape[1]

    def _pictures(self) -> float:
        from switch_lm.pages.pictures import as_image

        pictures = RoutingPictures(self.training.data.validation_ids, self.config)
        heat_map = pictures.history.load(0)
        as_image(heat_map)  # loads matplotlib's fonts
        of_layer = 2 + pictures.limited
        return of_layer * self.config.model.num_switch_layers * self._seconds(lambda: as_image(heat_map))

    def _check(self) -> float:
        windows = RouterWatch(self.training.data.training_ids, self.config).windows
        ids_BS, target_BS = (part.to(self.device) for part in windows)
        alpha = self.config.balance_weight
        return self._seconds(lambda: router_health(self.module.model, ids_BS, target_BS, alpha=alpha))

    def _mean(self, call: Callable[[], object], seconds: float) -> float:
        """Of one call, after a first one, which is slower and counts only if it takes too long to wait for others."""
        first, times = self._seconds(call), list[float]()
        if first > seconds:
            return first
        while len(times) < MANY and (sum(times) < seconds or (len(times) < 3 and sum(times) < 2 * seconds)):
            times.append(self._seconds(call))
        return sum(times) / len(times)

    def _seconds(self, call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started
