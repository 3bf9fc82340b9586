"""Loss and dropped choices of a trained model on a whole split, at a given capacity factor."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from switch_lm.measure.metrics import dropped_choices, num_choices, perplexity_of
from switch_lm.measure.scoring import negative_log_likelihood
from switch_lm.model import devices
from switch_lm.model.losses import language_loss
from switch_lm.model.transformer import SwitchLM, SwitchOutput, evaluating
from switch_lm.text.windows import EvaluationBatches

NANOGPT_BATCHES = 20  # eval_iters in nanoGPT's CPU recipe for Shakespeare


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split."""

    loss: float  # the language loss alone, nats per character
    dropped: float  # dropped choices / all choices, over all Switch layers
    dropped_per_layer: tuple[float, ...]
    predictions: int
    top_1: float | None = None  # the share of predictions whose character is the most probable one; None: not counted
    top_5: float | None = None  # or among the five

    @property
    def perplexity(self) -> float:
        return perplexity_of(self.loss)

    @property
    def bits_per_character(self) -> float:
        return self.loss / math.log(2)


class EvaluationTally:
    """The sums of an evaluation under way. It can continue later, in another process, to the same bits."""

    def __init__(self) -> None:
        self.num_batches = self.predictions = 0
        self.seconds = 0.0
        self.sums: Tensor | None = None  # nats, then for each layer its dropped choices and all of them

    def add(self, output: SwitchOutput, target_BS: Tensor) -> None:
        parts = [devices.widened(language_loss(output.logits, target_BS)) * target_BS.numel()]
        for routing in output.routings:
            choices = torch.as_tensor(num_choices(routing), device=output.logits.device)
            parts += [devices.widened(dropped_choices(routing)), devices.widened(choices)]
        sums = torch.stack(parts)
        self.sums = sums if self.sums is None else self.sums.to(sums) + sums
        self.num_batches += 1
        self.predictions += target_BS.numel()

    @property
    def evaluation(self) -> Evaluation:
        """Of what was read so far. A dense model drops nothing."""
        assert self.sums is not None
        nll, *of_layers = self.sums.tolist()
        dropped_L, choices_L = of_layers[::2], of_layers[1::2]
        return Evaluation(
            loss=nll / self.predictions,
            dropped=sum(dropped_L) / max(1.0, sum(choices_L)),
            dropped_per_layer=tuple(d / max(1.0, c) for d, c in zip(dropped_L, choices_L, strict=True)),
            predictions=self.predictions,
        )

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class AccuracyTally(EvaluationTally):
    """Also counts accuracy; of equally probable characters the one with the smaller id is first."""

    top_1 = top_5 = 0

    def add(self, output: SwitchOutput, target_BS: Tensor) -> None:
        super().add(output, target_BS)
        logit_BS1 = output.logits.gather(-1, target_BS[..., None])
        smaller_BSV = torch.arange(output.logits.shape[-1], device=target_BS.device) < target_BS[..., None]
        tied_BSV = (output.logits == logit_BS1) & smaller_BSV
        rank_BS = (~(output.logits <= logit_BS1) | tied_BSV).sum(dim=-1)  # of what is not a number all are before it
        self.top_1, self.top_5 = self.top_1 + int((rank_BS < 1).sum()), self.top_5 + int((rank_BS < 5).sum())

    @property
    def evaluation(self) -> Evaluation:
        return replace(super().evaluation, top_1=self.top_1 / self.predictions, top_5=self.top_5 / self.predictions)


class KeptLosses(AccuracyTally):
    """Also keeps the loss of each prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Tensor] = []

    def add(self, output: SwitchOutput, target_BS: Tensor) -> None:
        super().add(output, target_BS)
        self.parts.append(negative_log_likelihood(output.logits, target_BS).flatten().cpu())

    @property
    def loss_N(self) -> Tensor:
        """In nats, in the order of the text."""
        return torch.cat(self.parts)


def evaluate(
    model: SwitchLM,
    validation_ids: Tensor,
    *,
    context_length: int,
    batch_size: int,
    capacity_factor: float | None,
    precision: str,
    tally: EvaluationTally | None = None,
    after_batch: Callable[[int, int], None] = lambda done, of: None,
) -> Evaluation:
    """Scores each prediction of the split (ids of shape (N,)) once, on the model's device and in `eval()`.

    `precision`: fp32, or bf16 for autocast. `capacity_factor` None is dropless; otherwise the result depends on the
    batch size, since a batch shares its capacity slots. It continues from where `tally` stands. `after_batch` is given
    the number of batches that are done and of all; what it raises leaves the tally whole.
    """
    device, tally = model.embedding.weight.device, EvaluationTally() if tally is None else tally
    batches = EvaluationBatches(validation_ids, context_length=context_length, batch_size=batch_size)
    began = time.perf_counter() - tally.seconds
    with torch.inference_mode(), evaluating(model), _autocast(device, precision):
        for number in range(tally.num_batches, len(batches)):
            ids_BS, target_BS = (part.to(device) for part in batches[number])
            tally.add(model(ids_BS, capacity_factor=capacity_factor), target_BS)
            tally.seconds = time.perf_counter() - began
            after_batch(tally.num_batches, len(batches))
        evaluation = tally.evaluation
    tally.seconds = time.perf_counter() - began
    return evaluation


def nanogpt_estimates(
    model: SwitchLM,
    validation_ids: Tensor,
    *,
    batch_size: int,
    capacity_factor: float | None,
    precision: str,
    num_draws: int,
    seed: int,
) -> list[float]:
    """nanoGPT's estimate of the loss in nats per character, `num_draws` times: the mean over 20 random batches.

    Windows are drawn with replacement and may overlap. Source: nanoGPT, train.py, estimate_loss and get_batch.
    """
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    windows_NS = validation_ids.unfold(0, model.config.context_length + 1, 1)
    estimates = []
    with torch.inference_mode(), evaluating(model), _autocast(device, precision):
        for _ in range(num_draws):
            losses = []
            for _ in range(NANOGPT_BATCHES):
                window_BS = (
                    windows_NS[torch.randint(len(windows_NS), (batch_size,), generator=generator)].long().to(device)
                )
                output: SwitchOutput = model(window_BS[:, :-1], capacity_factor=capacity_factor)
                losses.append(devices.widened(language_loss(output.logits, window_BS[:, 1:])))
            estimates.append(torch.stack(losses).mean().item())
    return estimates


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
