"""Measures a trained model: `python -m switch_lm.evaluate [--run NAME]`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    MAX_SEED,
    CommandError,
    as_path,
    compute_on,
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
from switch_lm.storage.files import read_json
from switch_lm.storage.run_folder import RESULT
from switch_lm.storage.runs import run_of

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
    add, windows, draws = options.add_argument, *(whole_number(at_least=1, example=n) for n in (32, NANOGPT_DRAWS))
    words = "one or several; none is dropless (default: the one of the run's validation)"
    add("--capacity-factor", type=capacity_factor, nargs="+", metavar="FACTOR", help=words)
    words = "windows per batch, which share their capacity (default: as in training)"
    add("--batch-size", type=windows, metavar="N", help=words)
    words = (
        "choose experts by the training rule, where evaluation has another: with expert choice the loss sees the future"
    )
    add("--training-rule", action="store_true", help=words)
    add("--precision", choices=("fp32", "bf16"), help="(default: as in training)")
    add("--data", type=as_path, metavar="FILE", help="the text file, if it has moved")
    words = f"also nanoGPT's estimate, from 20 random batches, N times (default N: {NANOGPT_DRAWS})"
    add("--nanogpt-protocol", type=draws, metavar="N", nargs="?", const=NANOGPT_DRAWS, help=words)
    seed = whole_number(at_least=0, at_most=MAX_SEED, example=0)
    add("--seed", type=seed, default=0, help="seed of nanoGPT's random windows (default: 0)")
    add("--against", metavar="NAME", help="a second run to compare with, by play or by speaker (see --by)")
    words = "how --against groups the characters; writes a table and a picture (default: play)"
    add("--by", choices=("play", "speaker"), help=words)
    words = "skip the n-gram baselines and the check for copied text (saves a few seconds)"
    add("--no-baselines", action="store_true", help=words)
    add("--json", type=as_path, metavar="FILE", help="(default: evaluate.json in the run's folder)")
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
    from switch_lm.commandline import measuring
    from switch_lm.measure.evaluation import KeptLosses
    from switch_lm.model.transformer import choosing_as_trained

    path, model, header = open_model(options.run, options.outputs, options.average)
    corpus, split = text_of(header, options.data)
    ids = split.validation_ids(corpus)
    file = options.json or run_of(path) / "evaluate.json"
    require_writable(file, option="--json FILE")
    if options.nanogpt_protocol and len(ids) <= model.config.context_length:
        need = f"--nanogpt-protocol draws windows of {model.config.context_length + 1}; leave it out"
        raise CommandError(f"the validation split has {len(ids)} characters; {need}")
    second = measuring.Comparison(options, path, header, corpus, split) if options.against else None
    model = model.to(compute_on(options))
    how = {
        "batch_size": options.batch_size or header.config["data"]["batch_size"],
        "precision": options.precision or header.precision,
    }
    factors = measuring.factors_of(options, model)
    print(measuring.heading(model, ids, num_draws=options.nanogpt_protocol, **how), flush=True)
    content = {
        "checkpoint": str(path),
        "average": options.average,
        "corpus_sha256": header.corpus_sha256,
        "context_length": model.config.context_length,
        **how,
        "training_rule": options.training_rule,
        "training_capacity_factor": model.config.capacity_factor,
        "device": model.embedding.weight.device.type,
        "results": (results := list[dict[str, Any]]()),
    }
    tallies = [KeptLosses() for _ in factors]
    with choosing_as_trained(model) if options.training_rule else nullcontext():
        for factor, tally in zip(factors, tallies, strict=True):
            results.append(measuring.entry(options, model, ids, tally, capacity_factor=factor, **how))
            if len(results) == 1:
                measuring.forget_pictures(file)  # of what the next line replaces
            write_json(content, file, quiet=True)  # before it is printed
            print(measuring.row(results[-1], model), flush=True)
        if len(factors) > 1 and model.config.num_switch_layers:
            by_batch = {"batch_size": how["batch_size"], "as_trained": options.training_rule}
            table, content["in_words"] = measuring.beside_dropless(results, tallies, model, **by_batch)
            write_json(content, file, quiet=True)
            print("\n".join([*table, *filter(None, [content["in_words"]])]), flush=True)
            if share := (read_json(run_of(path) / RESULT) or {}).get("dropped_whole_run"):
                print(f"Training itself dropped {100 * share:.2g}% of choices, over all its steps.", flush=True)
    if not options.no_baselines:
        from switch_lm.training.baselines import comparison

        content |= comparison(model, corpus, split, data_dir=Path(header.config["data"]["dir"]))
        write_json(content, file, quiet=True)
        print(_baselines(content, results[len(options.capacity_factor or [0]) - 1]), flush=True)
    if second:
        second.write(content, file, tallies[0].loss_N)
    print(f"written: {file}", file=sys.stderr)
    return 0


def _baselines(content: dict[str, Any], model: dict[str, Any]) -> str:
    """Baselines beside a row of the model, and what a sample holds of the training text."""
    from switch_lm.commandline.measuring import losses, named
    from switch_lm.training.baselines import NAMES, SKIPPED, copied_in_words

    copied = content["copied"]
    run = f": {copied['longest_run_text'][:SHOWN]!r}" + "..." * (copied["longest_run"] > SHOWN)
    lines = [f"baselines: {SKIPPED}", "", copied_in_words(copied) + run]
    if content["baselines"] is not None:
        rows = {NAMES[key]: one for key, one in content["baselines"].items()}
        rows[f"model, factor {named(model['capacity_factor'])}"] = model
        columns = [f"{'':>18}{'loss':>10}{'perplexity':>13}{'bits/char':>12}{'top 1':>9}{'top 5':>9}"]
        columns += [f"{name:>18}{losses(one)}{one['top_1']:>9.2%}{one['top_5']:>9.2%}" for name, one in rows.items()]
        name, best = min(list(rows.items())[:-1], key=lambda row: row[1]["loss"])
        more = model["loss"] - best["loss"]
        verb = "beats" if more < 0.0 else "loses to"
        lines[:1] = [*columns, "", f"The model {verb} the best that counts alone, {name}, by {abs(more):.4f} nats."]
    return "\n".join(["", *lines])


if __name__ == "__main__":
    sys.exit(main())
