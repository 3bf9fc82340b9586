"""Measures a trained model: `python -m switch_lm.evaluate [--run NAME]`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
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
    validation_ids,
    whole_number,
    write_json,
    writing,
)
from switch_lm.config.reading import is_null
from switch_lm.config.rules import show
from switch_lm.stats.intervals import estimate
from switch_lm.storage.files import replacing
from switch_lm.storage.runs import run_name, run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from pathlib import Path

    from torch import Tensor

    from switch_lm.measure.evaluation import Evaluation
    from switch_lm.model.transformer import SwitchLM
    from switch_lm.storage.checkpoint import Header

NANOGPT_DRAWS = 10


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
    examples = {"": "the newest run, dropless", "--run NAME --capacity-factor 0.5 1 2 none": "what capacity costs it"}
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
        help="of nanoGPT's random windows (default: 0)",
    )
    options.add_argument("--against", metavar="NAME", help="a second run: where the losses differ (see --by)")
    options.add_argument(
        "--by", choices=("play", "speaker"), help="what --against compares: a table and a picture (default: play)"
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
        reader.error(f"{given}, and --against compares at one; give one, or leave out --against")
    return finish(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    from switch_lm.measure.evaluation import nanogpt_estimates
    from switch_lm.model.transformer import choosing_as_trained

    path, model, header = open_model(options.run, options.outputs, options.average)
    ids = validation_ids(header, options.data)
    file = options.json or run_of(path) / "evaluate.json"
    require_writable(file, option="--json FILE")
    if options.nanogpt_protocol and len(ids) <= model.config.context_length:
        need = f"--nanogpt-protocol draws windows of {model.config.context_length + 1}; leave it out"
        raise CommandError(f"the validation split has {len(ids)} characters; {need}")
    comparison = _Comparison(options, path, header, ids) if options.against else None
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
            result = _evaluated(model, ids, tally=comparison and comparison.losses, **how)
            losses = []
            if options.nanogpt_protocol:
                losses = nanogpt_estimates(model, ids, num_draws=options.nanogpt_protocol, seed=options.seed, **how)
            results.append(_entry(factor, result, losses, options.seed))
            write_json(content, file, quiet=True)  # before it is printed
            print(_row(results[-1]), flush=True)
    if comparison:
        comparison.write(content, file)
    print(f"written: {file}", file=sys.stderr)
    return 0


class _Comparison:
    """With a second run. It is refused before anything is measured if it was not validated by the same characters."""

    def __init__(self, options: argparse.Namespace, path: Path, header: Header, ids: Tensor) -> None:
        from switch_lm.measure.evaluation import KeptLosses
        from switch_lm.text.divisions import divide

        self.options, self.path, self.ids, self.by = options, path, ids, options.by or "play"
        self.losses, self.other_losses = KeptLosses(), KeptLosses()
        corpus, split = text_of(header, options.data)
        self.division = divide(corpus, split.validation, by=self.by)
        self.other_path, self.other, self.other_header = open_model(options.against, options.outputs, options.average)
        other_ids = validation_ids(self.other_header, options.data)
        if header.vocabulary != self.other_header.vocabulary or not ids.equal(other_ids):
            raise CommandError(
                f"--against {options.against}: the two runs must be validated by the same characters; {path} has "
                f"{_data(header)}, and {self.other_path} {_data(self.other_header)}; give another run, or train one of "
                "them again with these keys of the other"
            )

    def write(self, content: dict[str, Any], file: Path) -> None:
        """Measures the other model as `evaluate --run` does; the table, the picture and the rows in the JSON."""
        from switch_lm.measure.gains import gains
        from switch_lm.model.transformer import choosing_as_trained

        options, model, header = self.options, self.other.to(content["device"]), self.other_header
        how = {
            "batch_size": options.batch_size or header.config["data"]["batch_size"],
            "capacity_factor": (options.capacity_factor or [model.config.eval_capacity_factor])[0],
            "precision": options.precision or header.precision,
        }
        with choosing_as_trained(model) if options.training_rule else nullcontext():
            _evaluated(model, self.ids, tally=self.other_losses, **how)
        result = gains(self.losses.loss_N, self.other_losses.loss_N, self.division, by=self.by)
        a, b = content["context_length"], model.config.context_length
        content["by"] = asdict(result) | {"against": {"checkpoint": str(self.other_path), "context_length": b, **how}}
        write_json(content, file, quiet=True)
        paths = self.path, self.other_path
        first, second = map(run_name if run_name(paths[0]) != run_name(paths[1]) else str, paths)
        windows = f"; A reads windows of {a}, B of {b}" * (a != b)
        print(f"\nA: {first}, B: {second}; nats per character, below 0 A is better{windows}\n")
        print("\n".join(result.lines()), flush=True)
        from switch_lm.pages.pictures import files_of  # with it comes matplotlib

        for name, made in files_of(result.picture(first, second)).items():
            path = file.with_name(name)
            with writing(path, num_bytes=len(made), option="--json FILE"), replacing(path) as picture:
                picture.write(made)
            print(f"written: {path}", file=sys.stderr)


def _data(header: Header) -> str:
    data = {key: header.config["data"].get(key) for key in ("path", "text", "split", "hold_out")}
    return " ".join(f"data.{key}={show(value)}" for key, value in data.items() if value is not None)


def _evaluated(model: SwitchLM, ids: Tensor, *, batch_size: int, **how: Any) -> Evaluation:
    """With a bar that counts the batches."""
    from switch_lm.measure.evaluation import evaluate
    from switch_lm.probe.progress import progress
    from switch_lm.text.windows import EvaluationBatches

    sizes: Any = {"context_length": model.config.context_length, "batch_size": batch_size}
    with progress(len(EvaluationBatches(ids, **sizes))) as say:
        say("", stage=True)
        return evaluate(model, ids, **sizes, **how, after_batch=lambda *_: say("", stage=True))


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
        "dropped": result.dropped,
        "dropped_per_layer": list(result.dropped_per_layer),
        "predictions": result.predictions,
    }
    if (drawn := estimate(losses)) is not None:
        half = drawn.half()  # None: a single draw, or all are equal
        entry["nanogpt_protocol"] = {"mean": drawn.mean, "half_of_95_interval": half, "draws": losses, "seed": seed}
    return entry


def _row(entry: dict[str, Any]) -> str:
    factor = "none" if entry["capacity_factor"] is None else f"{entry['capacity_factor']:g}"
    loss, perplexity, bits = entry["loss"], entry["perplexity"], entry["bits_per_character"]
    row = f"{factor:>15}{figure(loss, 10, 4)}{figure(perplexity, 13, 3)}{figure(bits, 12, 4)}{entry['dropped']:>10.2%}"
    if nanogpt := entry.get("nanogpt_protocol"):
        row += f"   {figure(nanogpt['mean'], 0, 4)}"
        if (half := nanogpt["half_of_95_interval"]) is not None and half < math.inf:
            row += f" ± {half:{'.4f' if half >= 5e-5 else '.0e'}}"
    return row


if __name__ == "__main__":
    sys.exit(main())
