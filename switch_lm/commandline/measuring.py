"""Measures a model, and what capacity costs it, with a bar that counts the batches; and where two models differ."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from switch_lm.commandline.command import CommandError, figure, open_model, text_of, write_json, writing
from switch_lm.config.rules import show
from switch_lm.measure.evaluation import AccuracyTally, Evaluation, KeptLosses, evaluate, nanogpt_estimates
from switch_lm.measure.gains import gains
from switch_lm.model.transformer import SwitchLM, choosing_as_trained
from switch_lm.pages.pictures import files_of
from switch_lm.probe.progress import progress
from switch_lm.probe.subject import promised
from switch_lm.stats.clusters import mean_where, plus_minus
from switch_lm.stats.intervals import Estimate, estimate
from switch_lm.storage.checkpoint import Header
from switch_lm.storage.files import replacing
from switch_lm.storage.runs import run_name
from switch_lm.text.corpus import Corpus
from switch_lm.text.divisions import divide
from switch_lm.text.splits import Split
from switch_lm.text.windows import EvaluationBatches

FACTOR = 17  # columns
PER_LINE = 6  # layers
ROUNDING = 1e-5  # nats per character
DIVISIONS = ("play", "speaker")


def measured(
    model: SwitchLM, ids: Tensor, *, batch_size: int, tally: AccuracyTally | None = None, **how: Any
) -> Evaluation:
    """`evaluate`, with accuracy."""
    sizes: Any = {"context_length": model.config.context_length, "batch_size": batch_size}
    with progress(len(EvaluationBatches(ids, **sizes))) as say:
        say("", stage=True)
        tally = AccuracyTally() if tally is None else tally
        return evaluate(model, ids, **sizes, **how, tally=tally, after_batch=lambda *_: say("", stage=True))


def factors_of(options: argparse.Namespace, model: SwitchLM) -> list[float | None]:
    """The capacity factors to measure at: those that are asked for, and dropless, if one of them limits the experts."""
    given: list[float | None] = options.capacity_factor or [model.config.eval_capacity_factor]
    router, switches = model.router_options, model.config.num_switch_layers
    limited = [one for one in given if switches and router.limit(one, training=options.training_rule)]
    if options.capacity_factor and not limited and given != [None]:
        who = f"router={router.name}" if switches else "a dense model"
        where = " in evaluation; see --training-rule" * bool(switches and router.limit(1.0, training=True))
        print(f"--capacity-factor changes nothing: {who} has no capacity{where}", file=sys.stderr)
    return [*given, *[None] * (bool(limited) and None not in given)]


def heading(model: SwitchLM, ids: Tensor, *, batch_size: int, precision: str, num_draws: int | None) -> str:
    windows = f"{len(ids) - 1:,} predictions in windows of {model.config.context_length}"
    columns = f"{'capacity factor':>{FACTOR}}{'loss':>10}{'perplexity':>13}{'bits/char':>12}{'dropped':>10}"
    if num_draws:
        spread = "s, ± half of the 95% interval" if num_draws > 1 else ""
        columns += f"   nanoGPT's estimate, {num_draws} draw{spread}"
    return f"validation split: {windows}; capacity for batches of {batch_size} windows; {precision}\n\n{columns}"


def entry(
    options: argparse.Namespace, model: SwitchLM, ids: Tensor, tally: AccuracyTally, **how: Any
) -> dict[str, Any]:
    """One row as plain data. `how`: batch size, capacity factor and precision."""
    result = measured(model, ids, tally=tally, **how)
    one = {"capacity_factor": how["capacity_factor"], **asdict(result), "perplexity": result.perplexity}
    one |= {"bits_per_character": result.bits_per_character}
    if options.nanogpt_protocol:
        draws = nanogpt_estimates(model, ids, num_draws=options.nanogpt_protocol, seed=options.seed, **how)
        if (drawn := estimate(draws)) is not None:  # without a half: a single draw, or all are equal
            drawn_from = {"draws": draws, "seed": options.seed}
            one["nanogpt_protocol"] = {"mean": drawn.mean, "half_of_95_interval": drawn.half()} | drawn_from
    return one


def row(one: dict[str, Any], model: SwitchLM) -> str:
    line = f"{_marked(one, model)}{losses(one)}{one['dropped']:>10.2%}"
    if nanogpt := one.get("nanogpt_protocol"):
        line += f"   {figure(nanogpt['mean'], 0, 4)}"
        if (half := nanogpt["half_of_95_interval"]) is not None and half < math.inf:
            line += f" ± {half:{'.4f' if half >= 5e-5 else '.0e'}}"
    return line


def losses(one: dict[str, Any]) -> str:
    loss, perplexity, bits = one["loss"], one["perplexity"], one["bits_per_character"]
    return f"{figure(loss, 10, 4)}{figure(perplexity, 13, 3)}{figure(bits, 12, 4)}"


def named(factor: float | None) -> str:
    return "none" if factor is None else f"{factor:g}"


def _marked(one: dict[str, Any], model: SwitchLM) -> str:
    factor = one["capacity_factor"]
    return f"{named(factor) + ' (training)' * (factor == model.config.capacity_factor):>{FACTOR}}"


def beside_dropless(
    results: list[dict[str, Any]], tallies: Sequence[KeptLosses], model: SwitchLM, *, batch_size: int, as_trained: bool
) -> tuple[list[str], str]:
    """A table of how far each loss is from the dropless one and of drops by layer; what lower factors cost, in words.

    Adds the differences to `results`. They are paired by character; a unit is a batch, whose windows share capacity
    slots, or a window where these are its own. The words are empty where no factor is below that of training.
    """
    together = promised(model, training=as_trained, limited=True).depends_on_rows
    unit, size = ("batch", batch_size) if together else ("window", 1)
    dropless_N = tallies[[one["capacity_factor"] for one in results].index(None)].loss_N
    differences = [_paired(tally.loss_N - dropless_N, size * model.config.context_length) for tally in tallies]
    for one, found in zip(results, differences, strict=True):
        facts = {"difference": found.mean, "half_of_95_interval": found.half(), "units": found.count, "unit": unit}
        one["beside_dropless"] = facts
    lines, blocks = list[str](), model.config.switch_blocks
    for first in range(0, len(blocks), PER_LINE):
        some = slice(first, first + PER_LINE)
        columns = "".join(f"{f'layer {block:02d}':>10}" for block in blocks[some])
        lines += ["", f"{'capacity factor':>{FACTOR}}{'loss - dropless':>20}{columns}"]
        for one, found in zip(results, differences, strict=True):
            shares = "".join(f"{share:>10.1%}" for share in one["dropped_per_layer"][some])
            figures = plus_minus(found, "+.4f").split(" (")[0] if found.mean else "0"
            lines.append(f"{_marked(one, model)}{figures:>20}{shares}")
    units = f"{differences[0].count} {unit}{'es' if together else 's'}"
    over = f"± half of the 95% interval over {units} of this text, not over seeds"
    lines += ["", "By layer: the share of choices that is dropped. A batch holds neighbouring windows, whose loads are"]
    lines += ["less even than those of training's random windows. Factors are applied to the model as it is: one that"]
    lines += [f"was trained with a factor is used to it. Differences in nats per character: {over}."]
    trained = math.inf if model.config.capacity_factor is None else model.config.capacity_factor
    lower = {n: factor for n, one in enumerate(results) if (factor := one["capacity_factor"]) and factor < trained}
    sentences = []
    for n in sorted(lower, key=lambda n: -lower[n]):
        share, costs = results[n]["dropped"], _changed(differences[n], unit)
        dropped = f"{100 * share:.2g}% of choices would be dropped, and " * (share > 0.0)  # or it limits without drops
        sentences.append(f"At factor {lower[n]:g}, {dropped}the loss would {costs}.")
    return lines, "\n".join(sentences)


def _paired(difference_N: Tensor, unit: int) -> Estimate:
    """The mean of N differences, with that many predictions as a unit; 0 where all are equal up to rounding."""
    value_BU = pad(difference_N.double(), (0, -len(difference_N) % unit)).view(-1, unit)
    there_BU = torch.arange(value_BU.numel()).view_as(value_BU) < len(difference_N)
    if value_BU.mean(dim=1).abs().max() <= ROUNDING:
        return Estimate(0.0, len(value_BU))
    return mean_where(value_BU, there_BU) or Estimate(math.nan, 0)


def _changed(one: Estimate, unit: str) -> str:
    if one.mean == 0.0:
        return "stay the same"
    if one.error is not None and not one.resolved():
        return f"not change beyond chance ({_nats(one, unit)})"
    return f"{'rise' if one.mean > 0.0 else 'fall'} by {_nats(one, unit).lstrip('+-')} over dropless"


def _nats(one: Estimate, unit: str) -> str:
    figures, bracket, reason = plus_minus(one, "+.4f", unit).partition(" (")
    return f"{figures} nats{bracket}{reason}"


def forget_pictures(file: Path) -> None:
    """Removes the pictures of the comparison that `file` holds, before another result takes its place."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        by = json.loads(file.read_bytes())["by"]["by"]
        for path in file.parent.glob(f"evaluate_by_{by}.*") if by in DIVISIONS else ():
            path.unlink(missing_ok=True)


class Comparison:
    """With a second run. CommandError, before anything is measured, if it was validated on other characters."""

    def __init__(self, options: argparse.Namespace, path: Path, header: Header, corpus: Corpus, split: Split) -> None:
        self.options, self.path, self.by, self.ids = options, path, options.by or "play", split.validation_ids(corpus)
        self.other_losses = KeptLosses()
        self.division = divide(corpus, split.validation, by=self.by)
        self.other_path, self.other, self.other_header = open_model(options.against, options.outputs, options.average)
        other, other_split = text_of(self.other_header, options.data)
        other_ids = other_split.validation_ids(other)
        if header.vocabulary != self.other_header.vocabulary or not self.ids.equal(other_ids):
            raise CommandError(
                f"--against {options.against}: the two runs must be validated on the same characters; {path} has "
                f"{_data(header)}, and {self.other_path} {_data(self.other_header)}; give another run, or train one of "
                "them again with the other's"
            )

    def write(self, content: dict[str, Any], file: Path, loss_N: Tensor) -> None:
        """Measures the other model as `evaluate --run` does; the table, the picture and the rows in the JSON."""
        options, model, header = self.options, self.other.to(content["device"]), self.other_header
        how = {
            "batch_size": options.batch_size or header.config["data"]["batch_size"],
            "capacity_factor": (options.capacity_factor or [model.config.eval_capacity_factor])[0],
            "precision": options.precision or header.precision,
        }
        with choosing_as_trained(model) if options.training_rule else nullcontext():
            measured(model, self.ids, tally=self.other_losses, **how)
        result = gains(loss_N, self.other_losses.loss_N, self.division, by=self.by)
        b = model.config.context_length
        content["by"] = asdict(result) | {"against": {"checkpoint": str(self.other_path), "context_length": b, **how}}
        write_json(content, file, quiet=True)
        paths = self.path, self.other_path
        first, second = map(run_name if run_name(paths[0]) != run_name(paths[1]) else str, paths)
        settings = content | content["results"][0]  # of A
        differ = [
            f"; {key.replace('_', ' ')} of A {show(settings[key])}, of B {show(value)}"
            for key, value in (how | {"context_length": b}).items()
            if settings[key] != value
        ]
        print(f"\nA: {first}, B: {second}; nats per character; negative means A is better{''.join(differ)}\n")
        print("\n".join(result.lines()), flush=True)
        for name, made in files_of(result.picture(first, second)).items():
            path = file.with_name(name)
            with writing(path, num_bytes=len(made), option="--json FILE"), replacing(path) as picture:
                picture.write(made)
            print(f"written: {path}", file=sys.stderr)


def _data(header: Header) -> str:
    data = {key: header.config["data"].get(key) for key in ("path", "text", "split", "hold_out")}
    data["text"] = None if data["path"] else data["text"]
    return " ".join(f"data.{key}={show(value)}" for key, value in data.items() if value is not None)
