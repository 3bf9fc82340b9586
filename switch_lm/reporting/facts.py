"""What was run: commands, machines, definitions, and the runs that have no figures, or not all."""

from collections.abc import Sequence

from switch_lm.config.rules import show
from switch_lm.pages.document import Bullets, Cell, Code, Part, Table
from switch_lm.reporting.comparisons import Study
from switch_lm.reporting.controls import MACHINE
from switch_lm.reporting.records import DONE, Record, read_json
from switch_lm.reporting.words import count
from switch_lm.storage.run_folder import SWEEP

DEFINITIONS = (
    "The loss is the language loss alone, in nats per character, over the whole validation split, each prediction "
    "once, at the last step. The lowest of all validations is not compared: it is chosen by the same split, so "
    "it is too low.",
    "± is half of a 95 % interval by Student's t, of this figure alone. Differences of losses: least squares on "
    "variant and seed, over runs that differ in nothing else than what was varied. Runs that repeat a seed of the same "
    "variant are averaged: they are no further sample. A run of unknown seed stands alone.",
    "A threshold counts as reached on the straight line between two validations, the first time. With a learning rate "
    "that falls to the end of a run, all runs reach a loss near the final one late: see the seconds of all steps. "
    "The line lies above a curve that flattens, so times are a little long, by less than the time between validations.",
    "Seconds are those of training steps alone, without validation, samples and compiling.",
    "A dense run equals a Switch in the model's products only at factor 1.0 or dropless, with top-1, no shared expert, "
    "and equal sizes and training; the router's own products come on top. It equals one in all products if training "
    "takes as many within 2 %, with the optimizer's, and all but d_ff is equal.",
)


def what_was_run(study: Study) -> tuple[Part, ...]:
    """Commands, facts, definitions, and the runs that have no figures, or not all."""
    sweeps = sorted({record.sweep for record in study.records if record.sweep is not None})
    plans = [plan for sweep in sweeps if (plan := read_json(sweep / SWEEP)) is not None]
    commands = [str(plan["command"]) for plan in plans if plan.get("command")]
    parts: list[Part] = [Code("\n".join(commands))] if commands else []
    parts.append(Bullets((*_facts(study, plans), *DEFINITIONS)))
    unfinished = [(run, run.reason) for run in study.records if run.status != DONE]
    faulty = [(run, "; ".join(run.faults)) for run in study.records if run.faults]
    for caption, heading, runs in (
        ("Runs without a result", "Reason", unfinished),
        ("Runs of which not all is known", "What is missing", faulty),
    ):
        rows = tuple((Cell(_plain(run.name)), Cell(run.status), Cell(_plain(text))) for run, text in runs)
        parts += [Table(caption, ("Run", "Status", heading), rows)] if rows else []
    return tuple(parts)


def _facts(study: Study, plans: Sequence[dict[str, object]]) -> list[str]:
    statuses = [record.status for record in study.records]
    counted = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    facts = [f"{count(len(statuses), 'run')}: {counted}; {count(len(study.variants), 'variant')}."]
    used = study.used
    for words, values in (
        ("Machine", {_machine(run) for run in used}),
        ("Versions", {_versions(run) for run in used}),
        ("Commit", {str(run.result.get("commit") or "") for run in used}),
        ("Text (sha256)", {str(run.result.get("corpus_sha256") or "") for run in used}),
        ("Started", {str(plan.get("started") or "") for plan in plans}),
    ):
        shown = sorted(_plain(value) for value in values if value)
        facts.append(f"{words}: {'; '.join(shown) if shown else 'not recorded'}.")
    if any(isinstance(n := plan.get("side_by_side"), int) and n > 1 for plan in plans):
        facts.append("Jobs ran side by side: their seconds are longer than those of a run alone.")
    if differing := differing_keys(study):
        facts.append(f"Keys in which the runs differ, but for the seed: {', '.join(f'`{key}`' for key in differing)}.")
    return facts


def differing_keys(study: Study) -> list[str]:
    """The keys in which the runs that have a configuration differ, but for seed and name."""
    configs = [run.config for run in study.records if run.folder is not None and run.config]
    keys = sorted({key for config in configs for key in config} - {"seed", "name"})
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def _machine(run: Record) -> str:
    values = {key: run.result.get(f"hardware.{key}") for key in MACHINE}
    words = [str(values[key]) for key in ("device", "name", "precision") if values[key] is not None]
    words += [f"{values['threads']} threads"] if values["threads"] is not None else []
    words += ["compiled" if values["compile"] else "not compiled"] if isinstance(values["compile"], bool) else []
    return ", ".join(words)


def _versions(run: Record) -> str:
    versions = ((key.partition("."), value) for key, value in run.result.items())
    return ", ".join(f"{name} {show(value)}" for (start, _, name), value in versions if start == "versions")


def _plain(text: str) -> str:
    """Names and messages of others hold no markup of ours."""
    return text.replace("`", "'")
