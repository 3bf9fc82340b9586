"""The certificate of a run or of a configuration: `python -m switch_lm.check [--run NAME | key=value ...]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    CommandError,
    as_path,
    compute_on,
    finish,
    model_parser,
    open_model,
    require_writable,
    validation_ids,
    whole_number,
    write_json,
)
from switch_lm.config.keys import ConfigError
from switch_lm.config.rules import refusal
from switch_lm.storage.run_folder import CONFIG, Stopped, TrainingError
from switch_lm.storage.runs import run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from switch_lm.certificate.families import Row
    from switch_lm.certificate.finding import Finding, Verdict
    from switch_lm.config.schema import Config
    from switch_lm.model.transformer import SwitchLM
    from switch_lm.probe.subject import Subject
    from switch_lm.storage.checkpoint import Header

STEPS, STEPS_OF_ALL = 100, 300


def parser() -> argparse.ArgumentParser:
    about = (
        "Measures on real text whether a trained model, or a configuration, leaks, drops, starves or ignores its "
        "router. PASS: as promised. LEAKS: it does what is known of this rule. FAIL: it contradicts its rule (exit "
        "code 1)."
    )
    examples = {
        "": "the newest run",
        "--run NAME --all-policies": "every drop order and overflow rule on its weights, too",
        "router=topk --steps 300": "a configuration, trained for 300 steps first",
        "--all-routers": "every family of routers on a small model, some minutes",
    }
    options = model_parser("check", about, examples)
    add = options.add_argument
    words = "in place of --run: a configuration, as for switch_lm.train, which is trained for some steps first"
    add("overrides", nargs="*", metavar="key=value", help=words)
    count, default = whole_number(at_least=0, example=STEPS), f"default: {STEPS}; of all routers {STEPS_OF_ALL}"
    words = f"how many steps a configuration is trained; 0: as initialised ({default})"
    add("--steps", type=count, metavar="N", help=words)
    add("--verbose", action="store_true", help="print all that was measured of every check")
    words = "also every drop order and overflow rule on the same weights"
    add("--all-policies", action="store_true", help=words)
    words = (
        "in place of --run: every family of routers, each trained in the model of experiment=smoke; key=value applies "
        "to all that have the key"
    )
    add("--all-routers", action="store_true", help=words)
    add("--data", type=as_path, metavar="FILE", help="the text file, if it has moved")
    words = "(default: check.json in the run's folder, or of a configuration in its outputs)"
    add("--json", type=as_path, metavar="FILE", help=words)
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a check fails, 2 if it could not be made."""
    options = parser().parse_args(argv)
    if (problem := _contradiction(options)) is not None:
        return _refused(problem)
    verdicts: list[Verdict] = []
    try:  # configurations are refused before torch is imported
        if options.all_routers:
            configs = _of_every_router(options)
            code = finish(lambda: _check_every_router(options, configs, verdicts))
        else:
            config = _configuration(options, options.overrides) if options.overrides else None
            code = finish(lambda: _check(options, config, verdicts))
    except ConfigError as error:
        return _refused(refusal(error))
    except TrainingError as error:
        return _refused(str(error))
    except Stopped as stop:
        kept = "the JSON file has the routers that were finished" if options.all_routers else "nothing was kept"
        print(f"stopped: {kept}", file=sys.stderr)
        return stop.code
    if code == 1:
        return 2
    return code or int("FAIL" in verdicts)


def _contradiction(options: argparse.Namespace) -> str | None:
    """Why these options cannot be given together."""
    if options.overrides and options.run is not None:
        return f"--run {options.run} and {options.overrides[0]}: give a run or a configuration, not both"
    if options.average is not None and (options.overrides or options.all_routers):
        return f"--average {options.average}: only a trained run has it; give it with --run"
    if options.all_routers and (options.run is not None or options.all_policies):
        other = "--all-policies" if options.run is None else f"--run {options.run}"
        return f"--all-routers and {other}: the first trains models of its own; leave one of them out"
    if options.steps is not None and not options.overrides and not options.all_routers:
        return f"--steps {options.steps}: a run is trained already; give it with a configuration"
    return None


def _refused(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _check(options: argparse.Namespace, config: Config | None, verdicts: list[Verdict]) -> int:
    """Fills `verdicts` with those of all checks."""
    from switch_lm.certificate import policies, show
    from switch_lm.certificate.certify import PARTS, certify
    from switch_lm.probe.progress import progress

    checkpoint, steps = None, STEPS if options.steps is None else options.steps
    facts: dict[str, Any] = {"overrides": options.overrides, "steps": steps}
    if config is None:
        checkpoint, model, header = open_model(options.run, options.outputs, options.average)
        facts, folder = {"checkpoint": str(checkpoint), "average": options.average}, run_of(checkpoint)
        architecture, router = model.config, model.router_options
    else:
        folder, architecture, router = Path(config.outputs), config.model, config.router
    file = options.json or folder / "check.json"
    require_writable(file, option="--json FILE")
    if options.all_policies and not architecture.num_switch_layers:
        raise CommandError("--all-policies: a dense model routes nothing; leave it out, or give a Switch model")
    if options.all_policies and (problem := policies.refusal(router)) is not None:
        raise CommandError(f"--all-policies: {problem}")
    if config is not None:
        from switch_lm.training.start import scratch_model

        model, header = scratch_model(config, steps)
    subject = _subject(options, model, header)
    with progress(len(PARTS)) as say:
        findings = certify(subject, say=say)
    facts["findings"] = [asdict(finding) for finding in findings]
    verdicts += [finding.verdict for finding in findings]
    write_json(facts, file)  # before it is printed
    if checkpoint is not None:
        _to_tensorboard(findings, checkpoint, header)
    (show.whole_certificate if options.verbose else show.certificate)(findings)
    if options.all_policies:
        factor = model.config.capacity_factor or policies.DEFAULT_FACTOR
        with progress(len(policies.policies(subject))) as say:
            measured = policies.measure(subject, factor=factor, say=say)
        facts["policies"] = {"capacity_factor": factor, "measured": [asdict(one) for one in measured]}
        verdicts += [verdict for one in measured for verdict in (one.sees_future, one.depends_on_rows)]
        write_json(facts, file)
        show.policies(measured, factor=factor)
    return 0


def _subject(options: argparse.Namespace, model: SwitchLM, header: Header) -> Subject:
    """The model and its validation split; CommandError if that holds one distinct character."""
    from switch_lm.probe.subject import Subject
    from switch_lm.text.characters import named

    data, device = validation_ids(header, options.data), compute_on(options, in_float64=True)
    if data.min() == data.max():
        only = named(header.vocabulary[int(data[0])])
        rule = "there is nothing for a router to learn"
        raise CommandError(f"every character of the validation split is {only}: {rule}; check a run on another text")
    alpha = header.config.get("alpha", 0.0) if model.balance.adds_loss else 0.0
    return Subject(model.to(device), data.to(device), header.config["data"]["batch_size"], alpha)


def _to_tensorboard(findings: Sequence[Finding], checkpoint: Path, header: Header) -> None:
    """Beside the run's samples, if TensorBoard is one of the run's boards and its folder can be written."""
    from switch_lm.certificate.show import certificate_markdown, write_text
    from switch_lm.storage.checkpoint import read
    from switch_lm.training.boards.tensorboard import open_writer

    boards = header.config.get("logger", {}).get("boards", {})
    if "tensorboard" in boards and (run_of(checkpoint) / CONFIG).is_file():
        try:
            step = int(read(checkpoint).get("global_step", 0))
            markdown = certificate_markdown(findings)
            write_text(run_of(checkpoint), "summary/certificate", markdown, step, open_writer=open_writer)
        except OSError as error:
            print(f"not shown in TensorBoard: {error.strerror or error}", file=sys.stderr)


def _check_every_router(
    options: argparse.Namespace, configs: Mapping[str, Config | ConfigError], verdicts: list[Verdict]
) -> int:
    """Trains and certifies one model for each; 1 if that was impossible for one, which does not stop the others."""
    from switch_lm.certificate import show
    from switch_lm.certificate.leaks import named

    steps = STEPS_OF_ALL if options.steps is None else options.steps
    first = next(config for config in configs.values() if not isinstance(config, ConfigError))
    if not first.model.num_switch_layers:
        raise CommandError("--all-routers: a dense model routes nothing; give model.switch_every=1, for example")
    file = options.json or Path(first.outputs) / "check.json"
    require_writable(file, option="--json FILE")
    rows: dict[str, Row | str] = {}
    facts: dict[str, Any] = {"overrides": options.overrides, "steps": steps, "routers": {}}
    for number, (name, config) in enumerate(configs.items(), start=1):
        try:
            if isinstance(config, ConfigError):
                raise config
            row, findings = _certified(options, config, steps, f"{name} ({number} of {len(configs)}): ")
        except Exception as error:  # whatever goes wrong in a plugin
            known = isinstance(error, ConfigError | CommandError | TrainingError)
            reason = "; and ".join(str(error).splitlines())
            rows[name] = reason if known else f"{type(error).__name__}: {reason}"
            facts["routers"][name] = {"problem": rows[name]}
        else:
            if options.verbose:
                show.whole_certificate(findings, f"Certificate of {name}")
            rows[name], facts["routers"][name] = row, asdict(row) | {"findings": [asdict(one) for one in findings]}
            verdicts.append(row.verdict)
        write_json(facts, file, quiet=number < len(configs))
    show.families(rows, title=f"Every family of routers after {steps} steps, {named(first.model.capacity_factor)}")
    return int("FAIL" not in verdicts and any(isinstance(one, str) for one in rows.values()))


def _certified(options: argparse.Namespace, config: Config, steps: int, label: str) -> tuple[Row, list[Finding]]:
    """The row of one family, and all its findings."""
    from switch_lm.certificate.certify import PARTS, certify
    from switch_lm.certificate.families import row
    from switch_lm.probe.progress import progress
    from switch_lm.training.start import scratch_model

    began = time.monotonic()
    subject = _subject(options, *scratch_model(config, steps, label))
    with progress(len(PARTS)) as say:
        findings = certify(subject, say=lambda text, *, stage=False: say(f"{label}{text}", stage=stage))
    promise = subject.promise(training=True, limited=False)
    return row(config.router.name, findings, state=promise.state, seconds=time.monotonic() - began), findings


def _of_every_router(options: argparse.Namespace) -> dict[str, Config | ConfigError]:
    """The configuration of each family, or why there is none; ConfigError if there is none for any."""
    from switch_lm.config.every_router import overrides_of_each

    result: dict[str, Config | ConfigError] = {}
    for name, overrides in overrides_of_each(options.overrides).items():
        try:
            result[name] = _configuration(options, overrides)
        except ConfigError as error:
            result[name] = error
    errors = [one for one in result.values() if isinstance(one, ConfigError)]
    if len(errors) == len(result):
        raise errors[0]
    return result


def _configuration(options: argparse.Namespace, overrides: Sequence[str]) -> Config:
    from switch_lm.config import overrides as cli

    config = cli.composed(overrides)
    if config.resume is not None:
        raise ConfigError(f"resume={config.resume}: a check does not resume a run; check a run with --run NAME")
    given = {"device": options.device, "threads": options.threads}
    config = replace(config, trainer=replace(config.trainer, **{key: one for key, one in given.items() if one}))
    return config if options.data is None else replace(config, data=replace(config.data, path=str(options.data)))


if __name__ == "__main__":
    sys.exit(main())
