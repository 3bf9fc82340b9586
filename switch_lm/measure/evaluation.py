"""Loss and dropped choices of a trained model on a whole split, at a given capacity factor."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.measure.metrics import dropped_choices, num_choices, perplexity_of
from switch_lm.model.losses import language_loss
from switch_lm.model.transformer import SwitchLM, SwitchOutput, evaluating
from switch_lm.text.windows import evaluation_batches

NANOGPT_BATCHES = 20  # eval_iters in nanoGPT's CPU recipe for Shakespeare


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split."""

    loss: float  # the language loss alone, nats per character
    dropped: float  # dropped choices / all choices, over all Switch layers
    dropped_per_layer: tuple[float, ...]
    predictions: int

    @property
    def perplexity(self) -> float:
        return perplexity_of(self.loss)

    @property
    def bits_per_character(self) -> float:
        return self.loss / math.log(2)


def evaluate(
    model: SwitchLM,
    validation_ids: Tensor,
    *,
    context_length: int,
    batch_size: int,
    capacity_factor: float | None,
    precision: str,
) -> Evaluation:
    """Scores each prediction of the split (ids of shape (N,)) once, on the model's device and in `eval()`.

    `precision`: fp32, or bf16 for autocast. `capacity_factor` None is dropless; otherwise the result depends on the
    batch size, since a batch shares its capacity slots.
    """
    device, num_layers, predictions = model.embedding.weight.device, model.config.num_switch_layers, 0
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    dropped_L, choices_L = torch.zeros(2, num_layers, dtype=torch.float64, device=device)
    with torch.inference_mode(), evaluating(model), _autocast(device, precision):
        for ids_BS, target_BS in evaluation_batches(
            validation_ids.to(device), context_length=context_length, batch_size=batch_size
        ):
            output: SwitchOutput = model(ids_BS, capacity_factor=capacity_factor)
            loss_sum += language_loss(output.logits, target_BS).double() * target_BS.numel()
            predictions += target_BS.numel()
            for layer, routing in enumerate(output.routings):
                dropped_L[layer] += dropped_choices(routing)
                choices_L[layer] += num_choices(routing)
    return Evaluation(
        loss=loss_sum.item() / predictions,
        dropped=(dropped_L.sum() / choices_L.sum().clamp(min=1)).item(),  # a dense model has no choices
        dropped_per_layer=tuple((dropped_L / choices_L).tolist()),
        predictions=predictions,
    )


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
                window_BS = windows_NS[torch.randint(len(windows_NS), (batch_size,), generator=generator)].to(device)
                output: SwitchOutput = model(window_BS[:, :-1], capacity_factor=capacity_factor)
                losses.append(language_loss(output.logits, window_BS[:, 1:]).double())
            estimates.append(torch.stack(losses).mean().item())
    return estimates


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
