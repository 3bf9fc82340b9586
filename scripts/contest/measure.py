"""What is measured of trained routers: certificate, what explains the choice, seconds of a step, cost of generation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from bench import ours
from bench.generate import Draw, cached
from study.timing import in_turns

from contest import plan
from switch_lm.commandline.command import validation_ids
from switch_lm.generation.sampling import read as read_characters
from switch_lm.probe.reading import Probe, read
from switch_lm.stats.information import explained
from switch_lm.storage import checkpoint
from switch_lm.storage.runs import run_of
from switch_lm.text.classes import CHARACTER, WINDOW, labels
from switch_lm.training.hardware import all_threads

PREVIOUS, CHARACTERS = "previous character", 32
DENSE = plan.DENSE.variant


def certificate(path: Path, _: int) -> dict[str, Any]:
    """The checks by verdict, and the gap between the training rule and generation, in words."""
    command = [sys.executable, "-m", "switch_lm.check", "--run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise ChildProcessError(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr}")
    findings = json.loads((run_of(path) / "check.json").read_text(encoding="utf-8"))["findings"]
    verdicts: dict[str, list[str]] = {"PASS": [], "LEAKS": [], "FAIL": []}
    for finding in findings:
        verdicts[finding["verdict"]].append(finding["check"])
    gap = next((finding["measured"] for finding in findings if finding["check"] == "loss gap, training"), "")
    return {"verdicts": verdicts, "gap": gap}


def explanation(path: Path, _: int) -> dict[str, Any]:
    """Of the first choice, less chance: the mean over layers, and half of the widest 95% interval of a layer."""
    model, header = checkpoint.read_model(path)
    if not model.switch_layers:
        return {}
    ids = validation_ids(header, None)
    probe = Probe.of(ids, context_length=model.config.context_length)
    known, reading = labels(ids, probe.place_BS, header.vocabulary), read(model, probe)
    before_BS = ids[(probe.place_BS - 1).clamp(min=0)].long()
    result: dict[str, Any] = {}
    for name, label_BS in {CHARACTER: known[CHARACTER], PREVIOUS: before_BS, WINDOW: known[WINDOW]}.items():
        given_BS, given = (None, None) if name == CHARACTER else (known[CHARACTER], CHARACTER)
        layers = [
            explained(expert_BS, label_BS, label=name, given_BS=given_BS, given=given).beyond
            for expert_BS in reading.expert_LBS
        ]
        result[name] = {"share": fmean(x.mean for x in layers), "half": max(x.half() or 0.0 for x in layers)}
    return result


def seconds(paths: Mapping[str, Path], repetitions: int) -> dict[str, Any]:
    """Of a training step with trained weights, which stay as they are: its learning rate is next to nothing."""
    torch.set_num_threads(all_threads())

    def step(name: str, path: Path) -> ours.Step:
        variant, _, factor = name.partition(plan.AT)
        keys = [f"{key}={10**9}" for key in ("trainer.max_steps", "optim.warmup_steps")]
        keys += [f"model.capacity_factor={factor}"] if factor else []
        config = ours.composed("experiment=league", f"variant={variant}", *keys)
        return ours.training_step(config, precision="fp32", compiled=False, weights=checkpoint.read(path)["state_dict"])

    config = ours.composed("experiment=league")
    draw = ours.batches(batch_size=config.data.batch_size, context_length=config.model.context_length)
    return in_turns(
        {name: partial(step, name, path) for name, path in paths.items()}, draw, repetitions, baseline=DENSE
    )


def generation(paths: Mapping[str, Path], repetitions: int) -> dict[str, Any]:
    """Of a character near the end of a full window, with the cache and one thread; it is dropless in any case."""
    models = {name: checkpoint.read_model(path)[0] for name, path in paths.items() if plan.AT not in name}
    dense, threads = models[DENSE], torch.get_num_threads()

    def draw(number: int) -> dict[str, Draw]:
        """The same window for all, and the cache of each, which is filled outside of the timing."""
        generator, length = torch.Generator().manual_seed(number + 2**32), dense.config.context_length - CHARACTERS + 1
        window = torch.randint(dense.vocab_size, (length,), generator=generator).tolist()
        drawn = {name: Draw(window, model.new_cache()) for name, model in models.items()}
        for name, model in models.items():
            read_characters(model, window[:-1], drawn[name].cache)
        return drawn

    def writer(name: str) -> Callable[[dict[str, Draw]], None]:
        return lambda drawn: cached(models[name], drawn[name], CHARACTERS)

    try:
        return in_turns(
            {name: partial(writer, name) for name in models}, draw, repetitions, baseline=DENSE, each=CHARACTERS
        )
    finally:
        torch.set_num_threads(threads)
