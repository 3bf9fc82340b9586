"""Measures a model with a bar that counts the batches; two models, and where they differ."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.commandline.command import CommandError, open_model, text_of, write_json, writing
from switch_lm.config.rules import show
from switch_lm.measure.evaluation import AccuracyTally, Evaluation, KeptLosses, evaluate
from switch_lm.measure.gains import gains
from switch_lm.model.transformer import SwitchLM, choosing_as_trained
from switch_lm.pages.pictures import files_of
from switch_lm.probe.progress import progress
from switch_lm.storage.checkpoint import Header
from switch_lm.storage.files import replacing
from switch_lm.storage.runs import run_name
from switch_lm.text.corpus import Corpus
from switch_lm.text.divisions import divide
from switch_lm.text.splits import Split
from switch_lm.text.windows import EvaluationBatches

if TYPE_CHECKING:
    from torch import Tensor


def measured(
    model: SwitchLM, ids: Tensor, *, batch_size: int, tally: AccuracyTally | None = None, **how: Any
) -> Evaluation:
    """`evaluate`, with accuracy."""
    sizes: Any = {"context_length": model.config.context_length, "batch_size": batch_size}
    with progress(len(EvaluationBatches(ids, **sizes))) as say:
        say("", stage=True)
        tally = AccuracyTally() if tally is None else tally
        return evaluate(model, ids, **sizes, **how, tally=tally, after_batch=lambda *_: say("", stage=True))


class Comparison:
    """With a second run. CommandError, before anything is measured, if it was validated on other characters."""

    def __init__(self, options: argparse.Namespace, path: Path, header: Header, corpus: Corpus, split: Split) -> None:
        self.options, self.path, self.by, self.ids = options, path, options.by or "play", split.validation_ids(corpus)
        self.losses, self.other_losses = KeptLosses(), KeptLosses()
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

    def write(self, content: dict[str, Any], file: Path) -> None:
        """Measures the other model as `evaluate --run` does; the table, the picture and the rows in the JSON."""
        options, model, header = self.options, self.other.to(content["device"]), self.other_header
        how = {
            "batch_size": options.batch_size or header.config["data"]["batch_size"],
            "capacity_factor": (options.capacity_factor or [model.config.eval_capacity_factor])[0],
            "precision": options.precision or header.precision,
        }
        with choosing_as_trained(model) if options.training_rule else nullcontext():
            measured(model, self.ids, tally=self.other_losses, **how)
        result = gains(self.losses.loss_N, self.other_losses.loss_N, self.division, by=self.by)
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
