"""What was run, where and with what, what is missing and why, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Iterable

from switch_lm.config.rules import show
from switch_lm.pages.document import Bullets, Cell, Code, Part, Table
from switch_lm.report.comparisons import MACHINE
from switch_lm.report.form import count
from switch_lm.report.records import Record
from switch_lm.report.sources import read_json
from switch_lm.report.study import Study
from switch_lm.report.summary_csv import differing_keys
from switch_lm.storage.run_folder import SWEEP

DEFINITIONS = (
    "The loss is the language loss alone, in nats a character, over the whole validation split, each prediction once, "
    "at the last step. The lowest of all validations is not compared: choosing it by the same split makes it too low.",
    "An interval is a 95 % interval by Student's t over the seeds; differences are paired by seed. Runs that repeat a "
    "seed of the same variant are averaged: they are no further sample.",
    "A threshold counts as reached on the straight line between two validations, the first time. With a learning rate "
    "that falls to the end of a run, a loss near the final one is reached late by all: see the seconds of all steps. "
    "The line lies above a curve that flattens, so times are a little long, by less than the time between validations.",
    "Seconds are those of training steps alone, without validation, samples and compiling.",
    "A dense run is called a control of equal computation only for a Switch at factor 1.0 or dropless, with top-1, no "
    "shared expert, and equal sizes and training. The router's own products are not in dense and come on top.",
)


def parts(study: Study) -> tuple[Part, ...]:
    """Commands, facts, definitions, and the runs that have no figures, or not all."""
    commands = [f"{plan['command']}" for plan in _plans(study) if plan.get("command")]
    found: list[Part] = [Code("\n".join(commands))] if commands else []
    found.append(Bullets((*_facts(study), *DEFINITIONS)))
    if study.not_done:
        found.append(_runs("Runs without a result", study.not_done))
    if faulty := [record for record in study.records if record.faults]:
        rows = tuple((Cell(_plain(r.name)), Cell(r.status), Cell(_plain("; ".join(r.faults)))) for r in faulty)
        found.append(Table("Runs of which not all can be read", ("Run", "Status", "What is missing"), rows))
    return tuple(found)


def _facts(study: Study) -> list[str]:
    counted = [f"{len(list(group))} {status}" for status, group in _by_status(study.records).items()]
    facts = [f"{count(len(study.records), 'run')}: {', '.join(counted)}; {count(len(study.variants), 'variant')}."]
    used = study.used
    for words, values in (
        ("Machine", {_machine(run) for run in used}),
        ("Versions", {_versions(run) for run in used}),
        ("Commit", {str(run.result["commit"]) for run in used if run.result.get("commit")}),
        ("Text (sha256)", {str(run.result["corpus_sha256"]) for run in used if run.result.get("corpus_sha256")}),
        ("Started", {str(plan["started"]) for plan in _plans(study) if plan.get("started")}),
    ):
        shown = sorted(_plain(value) for value in values if value)
        facts.append(f"{words}: {'; '.join(shown) if shown else 'not recorded'}.")
    if any((_whole(plan.get("side_by_side")) or 1) > 1 for plan in _plans(study)):
        facts.append("Jobs ran side by side: their seconds are longer than those of a run alone.")
    if differing := differing_keys(study):
        facts.append(f"Keys in which the runs differ, but for the seed: {', '.join(f'`{key}`' for key in differing)}.")
    return facts


def _plans(study: Study) -> list[dict[str, object]]:
    sweeps = sorted({record.sweep for record in study.records if record.sweep is not None})
    return [plan for sweep in sweeps if (plan := read_json(sweep / SWEEP)) is not None]


def _by_status(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.status, []).append(record)
    return groups


def _machine(run: Record) -> str:
    found = {key: run.result.get(f"hardware.{key}") for key in MACHINE}
    words = [str(found[key]) for key in ("device", "name", "precision") if found[key] is not None]
    words += [f"{found['threads']} threads"] if found["threads"] is not None else []
    words += [{True: "compiled", False: "not compiled"}[found["compile"]]] if isinstance(found["compile"], bool) else []
    return ", ".join(words)


def _versions(run: Record) -> str:
    prefix = "versions."
    return ", ".join(f"{k.removeprefix(prefix)} {show(v)}" for k, v in run.result.items() if k.startswith(prefix))


def _runs(caption: str, records: Iterable[Record]) -> Table:
    rows = [(Cell(_plain(r.name)), Cell(r.status), Cell(_plain(r.reason))) for r in records]
    return Table(caption, ("Run", "Status", "Reason"), tuple(rows))


def _plain(text: str) -> str:
    """Names and messages of others hold no markup of ours."""
    return text.replace("`", "'")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
