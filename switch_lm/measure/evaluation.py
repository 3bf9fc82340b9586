"""The loss of a trained model on the whole validation split, and what it drops, at one capacity factor or several."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    MAX_SEED,
    CommandError,
    finish,
    model_parser,
    number,
    open_model,
    require_writable,
    validation_ids,
    whole_number,
    write_json,
)
from switch_lm.storage.runs import run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    import torch
    from torch import Tensor

    from switch_lm.model.transformer import SwitchLM, SwitchOutput

NANOGPT_BATCHES = 20  # eval_iters of nanoGPT's Shakespeare example on a CPU
NANOGPT_DRAWS = 10


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split."""

    loss: float  # language loss alone, nats per character
    dropped: float  # dropped choices / all choices, over all Switch layers
    dropped_per_layer: tuple[float, ...]
    predictions: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

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
    """Each prediction of the split once, on the model's device. `precision`: fp32, or bf16 for autocast.

    Unless dropless (`capacity_factor` None) the result depends on the batch size: places are shared by a batch.
    """
    import torch

    from switch_lm.measure.metrics import dropped_choices
    from switch_lm.model.losses import language_loss
    from switch_lm.model.transformer import evaluating
    from switch_lm.text.windows import evaluation_batches

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
                choices_L[layer] += routing.expert_TK.numel()
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
    """`num_draws` times the mean loss of 20 batches of windows drawn with replacement, which may overlap.

    Source: nanoGPT, train.py, estimate_loss and get_batch.
    """
    import torch

    from switch_lm.model.losses import language_loss
    from switch_lm.model.transformer import evaluating

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
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def capacity_factor(text: str) -> float | None:
    """Reads a capacity factor, or "none" for dropless."""
    if text.lower() == "none":
        return None
    value = number(text)
    if not 0.0 < value < math.inf:
        rule = "must be a finite number above 0, or none (dropless)"
        raise argparse.ArgumentTypeError(f"{text!r} {rule}; give for example 1.25")
    return value


def parser() -> argparse.ArgumentParser:
    about = "Measures a trained model on the whole validation split, every prediction once."
    options = model_parser(prog="python -m switch_lm.evaluate", about=about)
    factors = "one or several, none is dropless (default: the one that the run validated with)"
    options.add_argument("--capacity-factor", type=capacity_factor, nargs="+", metavar="FACTOR", help=factors)
    batch = "windows per batch, which share an expert's places (default: as in training)"
    options.add_argument("--batch-size", type=whole_number(at_least=1, example=32), metavar="N", help=batch)
    options.add_argument("--precision", choices=("fp32", "bf16"), help="(default: the one that the run was trained in)")
    options.add_argument("--data", type=Path, metavar="FILE", help="the text, if it is not where the run found it")
    draws = f"also nanoGPT's estimate, from {NANOGPT_BATCHES} random batches, N times (default N: {NANOGPT_DRAWS})"
    options.add_argument(
        "--nanogpt-protocol",
        type=whole_number(at_least=1, example=NANOGPT_DRAWS),
        nargs="?",
        const=NANOGPT_DRAWS,
        metavar="N",
        help=draws,
    )
    seed = whole_number(at_least=0, at_most=MAX_SEED, example=0)
    options.add_argument("--seed", type=seed, default=0, help="of nanoGPT's random windows (default: 0)")
    options.add_argument("--json", type=Path, metavar="FILE", help="(default: evaluate.json in the run's folder)")
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return finish(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    import torch

    path, model, header = open_model(options.run, options.outputs)
    ids = validation_ids(header, options.data)
    file = options.json or run_of(path) / "evaluate.json"
    require_writable(file, option="--json FILE")
    if options.nanogpt_protocol and len(ids) <= model.config.context_length:
        need = f"--nanogpt-protocol draws windows of {model.config.context_length + 1}; leave it out"
        raise CommandError(f"the validation split has {len(ids)} characters; {need}")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = options.batch_size or header.config["data"]["batch_size"]
    precision = options.precision or header.precision
    factors = options.capacity_factor or [model.config.eval_capacity_factor]
    print(_heading(model, ids, batch_size, precision, options.nanogpt_protocol), flush=True)
    results = []
    for factor in factors:
        how = {"batch_size": batch_size, "capacity_factor": factor, "precision": precision}
        result = evaluate(model, ids, context_length=model.config.context_length, **how)
        losses = []
        if options.nanogpt_protocol:
            losses = nanogpt_estimates(model, ids, num_draws=options.nanogpt_protocol, seed=options.seed, **how)
        results.append(_entry(factor, result, losses, options.seed))
        print(_row(results[-1]), flush=True)
    facts = {
        "checkpoint": str(path),
        "corpus_sha256": header.corpus_sha256,
        "context_length": model.config.context_length,
    }
    facts |= {"batch_size": batch_size, "precision": precision, "device": model.embedding.weight.device.type}
    write_json(facts | {"results": results}, file)
    return 0


def _heading(model: SwitchLM, ids: Tensor, batch_size: int, precision: str, num_draws: int | None) -> str:
    windows = f"{len(ids) - 1:,} predictions in windows of {model.config.context_length}"
    columns = f"{'capacity factor':>15}{'loss':>10}{'perplexity':>13}{'bits/char':>12}{'dropped':>10}"
    if num_draws:
        columns += f"   nanoGPT's estimate, {num_draws} draw{'s' * (num_draws > 1)}"
    return f"validation split: {windows}; capacity for batches of {batch_size} windows; {precision}\n\n{columns}"


def _entry(factor: float | None, result: Evaluation, losses: list[float], seed: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"capacity_factor": factor, "loss": result.loss, "perplexity": result.perplexity}
    entry |= {"bits_per_character": result.bits_per_character, "dropped": result.dropped}
    entry |= {"dropped_per_layer": list(result.dropped_per_layer), "predictions": result.predictions}
    if losses:
        spread = stdev(losses) if len(losses) > 1 else None
        entry["nanogpt_protocol"] = {"mean": fmean(losses), "standard_deviation": spread, "draws": losses, "seed": seed}
    return entry


def _row(entry: dict[str, Any]) -> str:
    factor = "none" if entry["capacity_factor"] is None else f"{entry['capacity_factor']:g}"
    row = f"{factor:>15}{entry['loss']:>10.4f}{entry['perplexity']:>13.3f}{entry['bits_per_character']:>12.4f}"
    row += f"{entry['dropped']:>10.2%}"
    if nanogpt := entry.get("nanogpt_protocol"):
        spread = (
            ""
            if nanogpt["standard_deviation"] is None
            else f" (standard deviation {nanogpt['standard_deviation']:.4f})"
        )
        row += f"   {nanogpt['mean']:.4f}{spread}"
    return row


if __name__ == "__main__":
    sys.exit(main())
