"""The LightningModule: the only place where loss, log and optimizer meet."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from switch_lm.config.plugins import load_plugins
from switch_lm.config.schema import Config
from switch_lm.measure.evaluation import EvaluationTally
from switch_lm.measure.tallies import DropTally, ValidationTally
from switch_lm.model import devices
from switch_lm.model.losses import language_loss
from switch_lm.model.transformer import SwitchLM
from switch_lm.optim.base import build_optimizer
from switch_lm.optim.schedule import learning_rate_factor
from switch_lm.routers.noise import seed_noise
from switch_lm.routers.routing import Routing
from switch_lm.storage.checkpoint import KEY, Header
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.callbacks.base import MicroBatch, step_ends
from switch_lm.training.data import Batch, derive_seed
from switch_lm.training.log import Log
from switch_lm.training.losses import Losses, loads_of_step, losses_of
from switch_lm.training.nonfinite import BadSteps, NonFiniteError, first_of, locate
from switch_lm.training.parallel.group import ALONE, Group
from switch_lm.training.saving import Saving
from switch_lm.training.step_graph import CannotRecordError, StepGraph
from switch_lm.training.validating import Validation, evaluate_at_capacity


class SwitchModule(lightning.LightningModule):
    """Trains a `SwitchLM` on language loss + alpha x balance loss (Switch Transformers, section 2.2).

    A run gives it the log that it writes to, what saves it, and the processes that train it together.
    """

    group: Group = ALONE
    run_log: Log = Log()
    saving: Saving | None = None

    def __init__(self, config: Config, vocabulary: Vocabulary, *, corpus_sha256: str, precision: str) -> None:
        super().__init__()
        self.config, self.vocabulary, self.precision_name = config, vocabulary, precision
        self.header = Header(
            asdict(config.model),
            asdict(config.router),
            asdict(config.balance),
            vocabulary.characters,
            corpus_sha256,
            precision,
            asdict(config),
            list(load_plugins()),
            vocabulary.start,
        ).as_plain()
        self.model = SwitchLM(config.model, len(vocabulary), router=config.router, balance=config.balance)
        self.frozen = [w for name, w in self.model.named_parameters() if w.requires_grad and not self._trains(name)]
        for weight in self.frozen:
            weight.requires_grad_(False)
        self.drops = DropTally(config.model.num_switch_layers)
        self.validation = Validation()  # under way, or the last one
        self.at_capacity = EvaluationTally()  # after the last step: the same with the capacity of training
        self.on_measured: Callable[[int, int], None] = lambda done, of: None  # batches of a validation
        self._step_routings: list[tuple[Routing, ...]] = []  # of each micro-batch of this step
        self.graph: StepGraph | None = None  # replays the passes of a micro-batch
        self._step_load_LE: Tensor | None = None  # of all rows of the step, with balance_over=step
        self._bad = BadSteps()
        self._rates: list[float] = []  # of this step: the schedule moves on before a validation or a checkpoint

    def _trains(self, name: str) -> bool:
        """Whether a parameter of this name is trained. Without a gradient an optimizer has no state for it either."""
        return self.config.train_only == "all" or f".ffn.{self.config.train_only}." in name

    def warm_up(self) -> None:
        """Runs a forward and backward pass over invented characters and leaves no gradient."""
        shape = self.config.rows_per_process, self.config.model.context_length
        ids = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.losses(ids, ids).total.backward()
        self.zero_grad()

    def losses(self, ids: Tensor, targets: Tensor, *, group: Group = ALONE) -> Losses:
        """Those of a micro-batch. `group`: the processes that have its other rows."""
        return losses_of(self.model, self.config, ids, targets, group=group, of_step_LE=self._step_load_LE)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._seed_noise(batch_idx)
        self._rates = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]

    def _seed_noise(self, batch_idx: int) -> None:
        """Makes all noise of a micro-batch a function of its number: no restart and nothing before it changes it."""
        number = batch_idx % self.trainer.accumulate_grad_batches
        seed_noise(derive_seed(self.config.seed, self.global_step, number, self.global_rank), self.device)

    def _micro_batches(self) -> Iterator[Batch]:
        """Those of this process in the step, each when the noise is that of its own pass."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for number, batch in enumerate(data.of_step(self.global_step)):
            self._seed_noise(number)
            yield batch

    def training_step(self, batch: Batch, batch_idx: int) -> MicroBatch:
        counts = self.config.balance_over == "step" and self.config.model.num_switch_layers > 0
        if counts and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._step_load_LE = loads_of_step(self.model, self._micro_batches(), group=self.group)
            self._seed_noise(0)
        done, step = self._replayed(batch, batch_idx) or self.forward_pass(batch), self.global_step + 1
        total = done["losses"]["train/total_loss"]
        if not self._reads(step):
            self._bad.add("the loss", total, step)
        elif not torch.isfinite(total):
            self._seed_noise(batch_idx)
            place = locate(self.model, lambda: self.losses(batch.ids, batch.targets).total)
            raise self._not_finite(f"the loss became {total.item()}", f"first in {place}", step=step)
        self.drops.add(done["routings"], done["sums"])
        self._step_routings.append(done["routings"])
        if done["sums"]:
            of_all = zip(done["routings"], done["sums"], strict=True)
            self._step_routings[-1] = tuple(replace(one, load_E=of.load_E) for one, of in of_all)
        if step % self.config.logger.log_every == 0:
            done["losses"] = self.group.mean(done["losses"])
        return done

    def _reads(self, step: int) -> bool:
        """Whether the step looks at its numbers. On a GPU only logged ones do: the others are launched ahead of it."""
        if not devices.is_cpu(self.device):
            if step % self.config.logger.log_every:
                return False
            self._look_back()
        return True

    def _look_back(self) -> None:
        """NonFiniteError if there was a bad number in a step that did not look."""
        if (found := self._bad.first()) is not None:
            (what, step), where = found, "the same run with logger.log_every=1 shows where"
            raise self._not_finite(f"{what} became infinite or not a number", where, step=step)

    def forward_pass(self, batch: Batch) -> MicroBatch:
        losses = self.losses(batch.ids, batch.targets, group=self.group)
        routings = tuple(routing.detached() for routing in losses.routings)
        return {"loss": losses.total, "losses": losses.by_tag(), "routings": routings, "sums": losses.sums}

    def both_passes(self, batch: Batch) -> MicroBatch:
        """The forward pass in the run's precision, and the backward pass, for a recording."""
        device, bf16 = batch.ids.device.type, self.precision_name == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):  # weights change between them
            done = self.forward_pass(batch)
        with torch.autocast(device, enabled=False):
            (done["loss"] / self.config.trainer.accumulate).backward()
        return done | {"loss": done["loss"].detach()}

    def record_steps(self) -> None:
        """From now on a step's passes are recorded and replayed, if that is possible."""
        self.graph = StepGraph(self.both_passes, self.model, accumulates=self.config.trainer.accumulate > 1)

    def _replayed(self, batch: Batch, batch_idx: int) -> MicroBatch | None:
        """None where nothing is recorded."""
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        if self.graph is not None and first and not self.graph.is_current():
            try:
                self.graph.record(batch)
            except CannotRecordError as error:
                print(f"note: each kernel of a step is launched alone: {error}", file=sys.stderr)
                self.graph = None
            self._seed_noise(batch_idx)
        return None if self.graph is None else self.graph.replay(batch, first=first)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.graph is None:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self.graph is None:  # a replay begins with new gradients
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Then what routers learn from the routings of the step, such as a bias."""
        super().optimizer_step(*args, **kwargs)
        of_routers = zip(self.model.routers, zip(*self._step_routings, strict=True), strict=True)
        with torch.no_grad():
            for router, routings in () if self.config.train_only == "experts" else of_routers:
                router.after_step(self.group.for_after_step(router, routings))
        self._step_routings = []

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        grads = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
        norm, step = torch.nn.utils.get_total_norm(grads.values()), self.global_step + 1
        if not self._reads(step):
            self._bad.add("the gradient norm", norm, step)
        elif not torch.isfinite(norm):  # before clipping, which multiplies every gradient by it
            bad = first_of(reversed(grads.items()))  # the backward pass runs from the last weight to the first
            where = f"the gradient of {bad}" if bad else "the norm itself: every gradient is finite"
            raise self._not_finite(f"the gradient norm became {norm.item()}", f"first in {where}", step=step)
        torch.nn.utils.clip_grads_with_norm_(self.parameters(), self.config.optim.grad_clip, norm)
        if step % self.config.logger.log_every == 0:
            rates = {f"optim/lr_{i}": rate for i, rate in enumerate(self._rates)}
            self.run_log.scalars({"optim/gradient_norm": norm.item(), **rates}, step)

    def on_train_start(self) -> None:
        """Continues a validation that was stopped, or begins the one before the first step."""
        step = self.global_step
        self._set_rates()
        if step < self.config.trainer.max_steps:
            self.at_capacity = EvaluationTally()  # of the leg before
        if step == 0 and self.validation.step < 0 and self.config.init_from is not None:
            self.validation = Validation(step, num_rows=self.run_log.num_rows)
        if self.saving is not None:
            self.saving.signals.nothing_to_save = False
        self.group.begin()
        self._validate()
        self.trainer.should_stop = step >= self.config.trainer.max_steps

    def _set_rates(self) -> None:
        """Those of the next step, of which a checkpoint has those of the leg that it was written in."""
        schedule: Any = self.lr_schedulers()
        for group, rate, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = rate * factor(schedule.last_epoch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not step_ends(self.trainer, batch_idx):
            return
        if self.config.trainer.validates(self.global_step):
            self.validation = Validation(self.global_step, num_rows=self.run_log.num_rows)
        if self.saving is not None:
            self.saving.after_step(self.trainer)
        self._validate()

    def _validate(self) -> None:
        """Runs a validation that has begun and is not done, and after the last step the one at training's capacity.

        That one is left to the first process, and so is all else that follows the last validation.

        Not left to Lightning, whose loop cannot continue within a validation. It has no public name for whether this is
        the first step, which a validation forgets and the end of the step asks for.
        """
        trainer, step = self.trainer, self.global_step
        if not self.validation.is_done:
            connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
            first, trainer.validating = connector._first_loop_iter, True
            loop.restarting = False  # it begins where the data begin
            self.on_validation_model_zero_grad()  # as Lightning does: gradients need no memory in a validation
            loop.run()
            connector._first_loop_iter, trainer.training = first, True
        if step >= self.config.trainer.max_steps:
            self.group.leave()
            if self.group.rank == 0:
                evaluate_at_capacity(self, trainer.datamodule)  # type: ignore[attr-defined]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Of one batch in each process. Where none is left for a process, its own has no row."""
        tally, model = ValidationTally(), self.config.model
        if len(batch.ids):
            self._add_to(tally, batch)
        self.validation.join(self.group.tally_of(tally, shape_LE=(model.num_switch_layers, model.num_experts)))

    def _add_to(self, tally: ValidationTally, batch: Batch) -> None:
        output = self.model(batch.ids)
        loss = language_loss(output.logits, batch.targets)
        if not torch.isfinite(loss):
            place = locate(self.model, lambda: language_loss(self.model(batch.ids).logits, batch.targets))
            what = f"the validation loss became {loss.item()}"
            raise self._not_finite(what, f"first in {place}", step=self.global_step)
        tally.add(loss, batch.targets.numel(), output.routings)

    def on_validation_epoch_end(self) -> None:
        validation = self.validation
        if self.global_step >= self.config.trainer.max_steps:
            self.group.leave()
        self.log("val/loss", validation.loss, logger=False)  # for the checkpoints' monitor; written below, at our step
        scalars = {"val/loss": validation.loss}
        if validation.load_max_over_mean is not None:
            self.drops.end_stretch()
            scalars |= {
                "val/load_max_over_mean": validation.load_max_over_mean,
                "moe/dropped_share": self.drops.last_stretch,
            }
            self.log("moe/dropped_share", self.drops.last_stretch, logger=False)  # for the console
        self.run_log.scalars(scalars, self.global_step)

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        processes = self.config.trainer.processes  # which measure a batch each at once
        self.on_measured(-(-self.validation.num_batches // processes), -(-len(data.validation_batches) // processes))
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """For what takes long in a validation. `Stopped` after a signal; what there is of the validation is saved."""
        if self.saving is not None:
            self.saving.in_validation(self.trainer)

    def on_validation_end(self) -> None:
        self.validation.end()
        if self.saving is not None:
            self.saving.after_validation(self.trainer)

    def configure_optimizers(self) -> Any:
        optim, max_steps, d_model = self.config.optim, self.config.trainer.max_steps, self.config.model.d_model
        optimizer = build_optimizer(self.model, optim, precision=self.precision_name)

        def factor(step: int) -> float:
            return learning_rate_factor(step, optim, max_steps=max_steps, d_model=d_model)

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _not_finite(self, what: str, place: str, *, step: int) -> NonFiniteError:
        rates = " and ".join(sorted({f"{rate:.3g}" for rate in self._rates}))
        return NonFiniteError(
            f"{what} at step {step} (learning rates {rates}), {place}; lower "
            f"{' and '.join(self.config.optim.learning_rates())}, or lengthen optim.warmup_steps"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._look_back()
        if (weight := first_of(self.model.named_parameters())) is not None:
            what = "nothing was saved: weights are not finite"
            raise self._not_finite(what, f"first in {weight}", step=self.global_step)
        checkpoint[KEY] = self.header
        checkpoint["drops"] = self.drops.state_dict()
        checkpoint["validation"] = self.validation.state_dict()
        checkpoint["at_capacity"] = self.at_capacity.state_dict()
        last = self.validation
        checkpoint["log_from"] = [self.global_step + 1, 0] if last.is_done else [last.step, last.num_rows]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.drops.load_state_dict(checkpoint["drops"])
        done = {"step": checkpoint["global_step"], "num_rows": 0, "is_done": True, "num_batches": 0}  # of older files
        self.validation.load_state_dict(done | checkpoint["validation"])
        self.at_capacity.load_state_dict(checkpoint.get("at_capacity", {}))
