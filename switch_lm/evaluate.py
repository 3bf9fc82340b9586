"""Measures a trained model: `python -m switch_lm.evaluate [--run NAME]`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    MAX_SEED,
    CommandError,
    as_path,
    compute_on,
    figure,
    finish,
    model_parser,
    number,
    open_model,
    require_writable,
    text_of,
    whole_number,
    write_json,
)
from switch_lm.config.reading import is_null
from switch_lm.stats.intervals import estimate
from switch_lm.storage.runs import run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from torch import Tensor

    from switch_lm.measure.evaluation import Evaluation
    from switch_lm.model.transformer import SwitchLM

NANOGPT_DRAWS = 10
SHOWN = 60  # characters of a copied run


def capacity_factor(text: str) -> float | None:
    """Parses a capacity factor, or "none" or "null" for dropless."""
    if is_null(text):
        return None
    value = number(text)
    if not 0.0 < value < math.inf:
        rule = "must be a finite number above 0, or none (dropless)"
        raise argparse.ArgumentTypeError(f"{text!r} {rule}; give for example 1.25")
    return value


def parser() -> argparse.ArgumentParser:
    about = "Measures a trained model on the whole validation split, every prediction once."
    examples = {
        "": "the newest run, as it was validated",
        "--run NAME --capacity-factor 0.5 1 2 none": "what capacity costs it",
        "--run A --against B --by play": "where A is better than B",
    }
    options = model_parser("evaluate", about, examples)
    options.add_argument(
        "--capacity-factor",
        type=capacity_factor,
        nargs="+",
        metavar="FACTOR",
        help="one or several; none is dropless (default: the one of the run's validation)",
    )
    options.add_argument(
        "--batch-size",
        type=whole_number(at_least=1, example=32),
        metavar="N",
        help="windows per batch, which share their capacity (default: as in training)",
    )
    options.add_argument(
        "--training-rule",
        action="store_true",
        help="choose experts by the training rule, where evaluation has another: with expert choice the loss sees the "
        "future",
    )
    options.add_argument("--precision", choices=("fp32", "bf16"), help="(default: as in training)")
    options.add_argument("--data", type=as_path, metavar="FILE", help="the text file, if it has moved")
    options.add_argument(
        "--nanogpt-protocol",
        type=whole_number(at_least=1, example=NANOGPT_DRAWS),
        nargs="?",
        const=NANOGPT_DRAWS,
        metavar="N",
        help=f"also nanoGPT's estimate, from 20 random batches, N times (default N: {NANOGPT_DRAWS})",
    )
    options.add_argument(
        "--seed",
        type=whole_number(at_least=0, at_most=MAX_SEED, example=0),
        default=0,
        help="seed of nanoGPT's random windows (default: 0)",
    )
    options.add_argument(
        "--against", metavar="NAME", help="a second run to compare with, by play or by speaker (see --by)"
    )
    options.add_argument(
        "--by",
        choices=("play", "speaker"),
        help="how --against groups the characters; writes a table and a picture (default: play)",
    )
    options.add_argument(
        "--no-baselines",
        action="store_true",
        help="skip the n-gram baselines and the check for copied text (saves a few seconds)",
    )
    options.add_argument("--json", type=as_path, metavar="FILE", help="(default: evaluate.json in the run's folder)")
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    reader = parser()
    options = reader.parse_args(argv)
    if options.by and not options.against:
        reader.error(f"--by {options.by} needs a second run to compare with; give --against NAME, or leave out --by")
    if options.against and len(options.capacity_factor or ()) > 1:
        given = f"--capacity-factor has {len(options.capacity_factor)} values"
        reader.error(f"{given}, and --against compares the runs at one; give one, or leave out --against")
    return finish(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    from switch_lm.commandline.measuring import Comparison, measured
    from switch_lm.measure.evaluation import nanogpt_estimates
    from switch_lm.model.transformer import choosing_as_trained

    path, model, header = open_model(options.run, options.outputs, options.average)
    corpus, split = text_of(header, options.data)
    ids = split.validation_ids(corpus)
    file = options.json or run_of(path) / "evaluate.json"
    require_writable(file, option="--json FILE")
    if options.nanogpt_protocol and len(ids) <= model.config.context_length:
        need = f"--nanogpt-protocol draws windows of {model.config.context_length + 1}; leave it out"
        raise CommandError(f"the validation split has {len(ids)} characters; {need}")
    second = Comparison(options, path, header, corpus, split) if options.against else None
    model = model.to(compute_on(options))
    batch_size = options.batch_size or header.config["data"]["batch_size"]
    precision = options.precision or header.precision
    factors = options.capacity_factor or [model.config.eval_capacity_factor]
    print(_heading(model, ids, batch_size, precision, options.nanogpt_protocol), flush=True)
    results: list[dict[str, Any]] = []
    content = {
        "checkpoint": str(path),
        "average": options.average,
        "corpus_sha256": header.corpus_sha256,
        "context_length": model.config.context_length,
        "batch_size": batch_size,
        "precision": precision,
        "training_rule": options.training_rule,
        "device": model.embedding.weight.device.type,
        "results": results,
    }
    with choosing_as_trained(model) if options.training_rule else nullcontext():
        for factor in factors:
            how = {"batch_size": batch_size, "capacity_factor": factor, "precision": precision}
            result = measured(model, ids, tally=second.losses if second else None, **how)
            losses = []
            if options.nanogpt_protocol:
                losses = nanogpt_estimates(model, ids, num_draws=options.nanogpt_protocol, seed=options.seed, **how)
            results.append(_entry(factor, result, losses, options.seed))
            write_json(content, file, quiet=True)  # before it is printed
            print(_row(results[-1]), flush=True)
    if not options.no_baselines:
        from switch_lm.training.baselines import comparison

        content |= comparison(model, corpus, split, data_dir=Path(header.config["data"]["dir"]))
        write_json(content, file, quiet=True)
        print(_baselines(content), flush=True)
    if second:
        second.write(content, file)
    print(f"written: {file}", file=sys.stderr)
    return 0


def _heading(model: SwitchLM, ids: Tensor, batch_size: int, precision: str, num_draws: int | None) -> str:
    windows = f"{len(ids) - 1:,} predictions in windows of {model.config.context_length}"
    columns = f"{'capacity factor':>15}{'loss':>10}{'perplexity':>13}{'bits/char':>12}{'dropped':>10}"
    if num_draws:
        spread = "s, ± half of the 95 % interval" if num_draws > 1 else ""
        columns += f"   nanoGPT's estimate, {num_draws} draw{spread}"
    return f"validation split: {windows}; capacity for batches of {batch_size} windows; {precision}\n\n{columns}"


def _entry(factor: float | None, result: Evaluation, losses: list[float], seed: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "capacity_factor": factor,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_character": result.bits_per_character,
        "top_1": result.top_1,
        "top_5": result.top_5,
        "dropped": result.dropped,
        "dropped_per_layer": list(result.dropped_per_layer),
        "predictions": result.predictions,
    }
    if (drawn := estimate(losses)) is not None:
        half = drawn.half()  # None: a single draw, or all are equal
        entry["nanogpt_protocol"] = {"mean": drawn.mean, "half_of_95_interval": half, "draws": losses, "seed": seed}
    return entry


def _row(entry: dict[str, Any]) -> str:
    factor = _named(entry["capacity_factor"])
    row = f"{factor:>15}{_losses(entry)}{entry['dropped']:>10.2%}"
    if nanogpt := entry.get("nanogpt_protocol"):
        row += f"   {figure(nanogpt['mean'], 0, 4)}"
        if (half := nanogpt["half_of_95_interval"]) is not None and half < math.inf:
            row += f" ± {half:{'.4f' if half >= 5e-5 else '.0e'}}"
    return row


def _losses(entry: dict[str, Any]) -> str:
    loss, perplexity, bits = entry["loss"], entry["perplexity"], entry["bits_per_character"]
    return f"{figure(loss, 10, 4)}{figure(perplexity, 13, 3)}{figure(bits, 12, 4)}"


def _named(factor: float | None) -> str:
    return "none" if factor is None else f"{factor:g}"


def _baselines(content: dict[str, Any]) -> str:
    """Baselines beside the last row, and what a sample holds of the training text."""
    from switch_lm.training.baselines import NAMES, SKIPPED, copied_in_words

    copied = content["copied"]
    run = f": {copied['longest_run_text'][:SHOWN]!r}" + "..." * (copied["longest_run"] > SHOWN)
    lines = [f"baselines: {SKIPPED}", "", copied_in_words(copied) + run]
    if content["baselines"] is not None:
        last = content["results"][-1]
        rows = {NAMES[key]: one for key, one in content["baselines"].items()}
        rows[f"model, factor {_named(last['capacity_factor'])}"] = last
        columns = [f"{'':>18}{'loss':>10}{'perplexity':>13}{'bits/char':>12}{'top 1':>9}{'top 5':>9}"]
        columns += [f"{name:>18}{_losses(one)}{one['top_1']:>9.2%}{one['top_5']:>9.2%}" for name, one in rows.items()]
        lines[:1] = columns
    return "\n".join(["", *lines])


if __name__ == "__main__":
    sys.exit(main())
