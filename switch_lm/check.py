"""The certificate of a run or of a configuration: `python -m switch_lm.check [--run NAME | key=value ...]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.commandline.command import (
    CommandError,
    finish,
    model_parser,
    open_model,
    require_writable,
    validation_ids,
    whole_number,
    write_json,
)
from switch_lm.config.rules import ConfigError
from switch_lm.storage.run_folder import CONFIG, Stopped, TrainingError
from switch_lm.storage.runs import run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from switch_lm.certificate.finding import Finding, Verdict
    from switch_lm.config.schema import Config
    from switch_lm.model.transformer import SwitchLM
    from switch_lm.probe.subject import Subject
    from switch_lm.storage.checkpoint import Header

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
    steps = f"how many steps a configuration is trained; 0: as initialised (default: {STEPS})"
    options.add_argument("--steps", type=whole_number(at_least=0, example=STEPS), metavar="N", help=steps)
    every = "also every drop order and overflow rule on the same weights"
    options.add_argument("--all-policies", action="store_true", help=every)
    options.add_argument("--data", type=Path, metavar="FILE", help="the text, if it is not where the run found it")
    where = "(default: check.json in the run's folder, or of a configuration in its outputs)"
    options.add_argument("--json", type=Path, metavar="FILE", help=where)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a check fails, 2 if it could not be made."""
    options = parser().parse_args(argv)
    if options.overrides and options.run is not None:
        return _refused(f"--run {options.run} and {options.overrides[0]}: give a run or a configuration, not both")
    if options.steps is not None and not options.overrides:
        return _refused(f"--steps {options.steps}: a run is trained already; give it with a configuration")
    verdicts: list[Verdict] = []
    try:
        code = finish(lambda: _check(options, verdicts))
    except ConfigError as error:
        return _refused(f"The configuration cannot be used:\n{error}")
    except TrainingError as error:
        return _refused(str(error))
    except Stopped as stop:
        print("stopped: nothing was kept", file=sys.stderr)
        return stop.code
    if code == 1:
        return 2
    return code or int("FAIL" in verdicts)


def _refused(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _check(options: argparse.Namespace, verdicts: list[Verdict]) -> int:
    """Fills `verdicts` with those of all checks."""
    from switch_lm.certificate import certify as certificate
    from switch_lm.certificate import policies, show

    subject, facts, folder = _of_configuration(options) if options.overrides else _of_run(options)
    file = options.json or folder / "check.json"
    require_writable(file, option="--json FILE")
    if options.all_policies and not subject.model.config.num_switch_layers:
        raise CommandError("--all-policies: a dense model routes nothing; leave it out, or give a Switch model")
    with show.progress() as say:
        found = certificate.certify(subject, say=say)
    show.findings(found)
    facts["findings"] = [finding.as_plain() for finding in found]
    verdicts += [finding.verdict for finding in found]
    if options.all_policies:
        factor = policies.factor_of(subject)
        with show.progress(len(policies.policies(subject))) as say:
            measured = policies.measure(subject, factor=factor, say=say)
        show.policies(measured, factor=factor)
        facts["policies"] = {"capacity_factor": factor, "measured": [one.as_plain() for one in measured]}
        verdicts += [verdict for one in measured for verdict in (one.sees_future, one.depends_on_rows)]
    write_json(facts, file)
    if (checkpoint := facts.get("checkpoint")) is not None:
        _to_tensorboard(found, Path(checkpoint))
    return 0


def _to_tensorboard(found: Sequence[Finding], checkpoint: Path) -> None:
    """Beside the run's samples, if it is a run's checkpoint and its folder can be written."""
    from switch_lm.certificate.dashboard import certificate_markdown, write_text
    from switch_lm.storage.checkpoint import read

    if (run_of(checkpoint) / CONFIG).is_file():
        try:
            step = int(read(checkpoint).get("global_step", 0))
            write_text(run_of(checkpoint), "certificate", certificate_markdown(found), step)
        except OSError as error:
            print(f"not shown in TensorBoard: {error.strerror or error}", file=sys.stderr)


def _of_run(options: argparse.Namespace) -> tuple[Subject, dict[str, Any], Path]:
    """What to check, the facts for its file, and the folder of that file."""
    path, model, header = open_model(options.run, options.outputs)
    return _subject(model, header, options.data), {"checkpoint": str(path)}, run_of(path)


def _of_configuration(options: argparse.Namespace) -> tuple[Subject, dict[str, Any], Path]:
    """The same of a model that is trained for a few steps, in a folder that is thrown away."""
    from switch_lm.config import overrides as cli

    config = cli.composed(options.overrides)
    if config.resume is not None:
        raise ConfigError(f"resume={config.resume}: a check does not resume a run; check a run with --run NAME")
    if options.data is not None:
        config = replace(config, data=replace(config.data, path=str(options.data)))
    steps = STEPS if options.steps is None else options.steps
    model, header = _trained(config, steps)
    facts = {"overrides": options.overrides, "steps": steps}
    return _subject(model, header, options.data), facts, Path(config.outputs)


def _trained(config: Config, steps: int) -> tuple[SwitchLM, Header]:
    """After `steps` steps; after none as initialised, or as `init_from` gives it."""
    from switch_lm.storage import run_folder
    from switch_lm.storage.checkpoint import Header, read_model
    from switch_lm.training.prepare import prepare
    from switch_lm.training.signals import StopSignals
    from switch_lm.training.start import train

    trainer = replace(config.trainer, max_steps=max(1, steps), val_every=max(1, steps), keep_best=1, max_time=None)
    config = replace(config, trainer=trainer, logger=replace(config.logger, sample_length=0))
    heading = f"training {steps} steps"
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        if steps:
            print(f"{heading} ...", file=sys.stderr)
            train(config, folder=run, heading=heading)
            return read_model(run)
        job, signals = run_folder.of_job(run, config), StopSignals(run)
        with prepare(config, job, signals=signals, heading=heading) as training:
            return training.module.model.eval(), Header(**training.module.header)


def _subject(model: SwitchLM, header: Header, data: Path | None) -> Subject:
    import torch

    from switch_lm.probe.subject import Subject

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, config = validation_ids(header, data), header.config
    return Subject(model.to(device), ids.to(device), config["data"]["batch_size"], config.get("alpha", 0.0))


if __name__ == "__main__":
    sys.exit(main())
