"""The certificate of a run or of a configuration: `python -m switch_lm.check [--run NAME | key=value ...]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.command import (
    CommandError,
    finish,
    model_parser,
    open_model,
    validation_ids,
    whole_number,
    write_json,
)
from switch_lm.config import ConfigError
from switch_lm.run_folder import CONFIG, Stopped, TrainingError
from switch_lm.runs import run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from switch_lm.check.finding import Finding
    from switch_lm.check.subject import Subject
    from switch_lm.checkpoint import Header
    from switch_lm.model import SwitchLM
    from switch_lm.settings import Config

STEPS = 100


def parser() -> argparse.ArgumentParser:
    about = (
        "Measures on real text whether a trained model, or a configuration, leaks, drops, starves or ignores its "
        "router. PASS: as promised. LEAKS: it does what is known of this rule. FAIL: it contradicts its rule (exit "
        "code 1)."
    )
    options = model_parser(prog="python -m switch_lm.check", about=about)
    overrides = "in place of --run: a configuration, as for switch_lm.train, which is trained for some steps first"
    options.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)
    steps = f"how many steps a configuration is trained; 0: as it is drawn (default: {STEPS})"
    options.add_argument("--steps", type=whole_number(at_least=0, example=STEPS), metavar="N", help=steps)
    every = "also every drop order and overflow rule on the same weights"
    options.add_argument("--all-policies", action="store_true", help=every)
    options.add_argument("--data", type=Path, metavar="FILE", help="the text, if it is not where the run found it")
    where = "(default: check.json in the run's folder, or under --outputs for a configuration)"
    options.add_argument("--json", type=Path, metavar="FILE", help=where)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.overrides and options.run is not None:
        print(
            f"--run {options.run} and {options.overrides[0]}: give a run or a configuration, not both", file=sys.stderr
        )
        return 2
    if options.steps is not None and not options.overrides:
        print(f"--steps {options.steps}: a run is trained already; give it with a configuration", file=sys.stderr)
        return 2
    try:
        return finish(lambda: _check(options))
    except ConfigError as error:
        print(f"The configuration can not be used:\n{error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    except Stopped as stop:
        print("stopped: nothing was kept", file=sys.stderr)
        return stop.code


def _check(options: argparse.Namespace) -> int:
    from switch_lm.check import certificate, policies, show
    from switch_lm.check.finding import Verdict

    subject, facts = _of_configuration(options) if options.overrides else _of_run(options)
    with show.progress() as say:
        found = certificate.certify(subject, say=say)
    show.findings(found)
    if (checkpoint := facts.get("checkpoint")) is not None:
        _to_tensorboard(found, Path(checkpoint))
    facts["findings"] = [finding.as_plain() for finding in found]
    verdicts = [finding.verdict for finding in found]
    if options.all_policies:
        if not subject.model.config.num_switch_layers:
            raise CommandError("--all-policies: a dense model routes nothing; leave it out, or give a Switch model")
        factor = policies.factor_of(subject)
        with show.progress(len(policies.policies())) as say:
            measured = policies.measure(subject, factor=factor, say=say)
        show.policies(measured, factor=factor)
        facts["policies"] = {"capacity_factor": factor, "measured": [one.as_plain() for one in measured]}
        verdicts += [verdict for one in measured for verdict in (one.sees_future, one.depends_on_rows)]
    folder = run_of(Path(facts["checkpoint"])) if "checkpoint" in facts else options.outputs
    write_json(facts, options.json or folder / "check.json")
    return 1 if Verdict.FAIL in verdicts else 0


def _to_tensorboard(found: Sequence[Finding], checkpoint: Path) -> None:
    """Beside the run's samples, if it is a run's checkpoint and its folder can be written."""
    from switch_lm.checkpoint import read
    from switch_lm.dashboard_text import certificate_markdown, write_text

    if (run_of(checkpoint) / CONFIG).is_file():
        try:
            step = int(read(checkpoint).get("global_step", 0))
            write_text(run_of(checkpoint), "certificate", certificate_markdown(found), step)
        except OSError as error:
            print(f"not shown in TensorBoard: {error.strerror or error}", file=sys.stderr)


def _of_run(options: argparse.Namespace) -> tuple[Subject, dict[str, Any]]:
    """What to check, and what is said of it."""
    path, model, header = open_model(options.run, options.outputs)
    return _subject(model, header, options.data), {"checkpoint": str(path)}


def _of_configuration(options: argparse.Namespace) -> tuple[Subject, dict[str, Any]]:
    """The same of a model that is trained for a few steps, in a folder that is thrown away."""
    from switch_lm import cli

    config = cli.composed(options.overrides)
    if options.data is not None:
        config = replace(config, data=replace(config.data, path=str(options.data)))
    steps = STEPS if options.steps is None else options.steps
    model, header = _trained(config, steps) if steps else _drawn(config)
    return _subject(model, header, options.data), {"overrides": options.overrides, "steps": steps}


def _trained(config: Config, steps: int) -> tuple[SwitchLM, Header]:
    from switch_lm.checkpoint import read_model
    from switch_lm.train import train

    trainer = replace(config.trainer, max_steps=steps, val_every=steps, keep_best=1, max_time=None)
    config = replace(config, trainer=trainer, logger=replace(config.logger, sample_length=0))
    print(f"training {steps} steps ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        train(config, folder=run, heading=f"training {steps} steps")
        return read_model(run)


def _drawn(config: Config) -> tuple[SwitchLM, Header]:
    import torch

    from switch_lm.checkpoint import Header
    from switch_lm.corpus import load_corpus
    from switch_lm.model import SwitchLM
    from switch_lm.vocab import Vocabulary

    corpus = load_corpus(data_dir=Path(config.data.dir), path=Path(config.data.path) if config.data.path else None)
    vocabulary = Vocabulary.of(corpus.text)
    torch.manual_seed(config.seed)
    model = SwitchLM(config.model, len(vocabulary)).eval()
    return model, Header(asdict(config.model), vocabulary.characters, corpus.sha256, "fp32", asdict(config))


def _subject(model: SwitchLM, header: Header, data: Path | None) -> Subject:
    import torch

    from switch_lm.check.subject import Subject

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, config = validation_ids(header, data), header.config
    return Subject(model.to(device), ids.to(device), config["data"]["batch_size"], config["alpha"])


if __name__ == "__main__":
    sys.exit(main())
