"""What stands in a report, and in which order."""

from __future__ import annotations

from switch_lm.pages.document import Bullets, Document, Part, Section, Text
from switch_lm.report import runs_table
from switch_lm.report.comparisons import Comparisons, compare
from switch_lm.report.frontier import frontier_pictures
from switch_lm.report.learning import curve_pictures
from switch_lm.report.plots import routing_pictures
from switch_lm.report.study import Study
from switch_lm.report.tables import balance_table, comparison_table, computation_table, frontier_table, table_1
from switch_lm.report.words import lead, words


def build(study: Study, *, title: str) -> Document:
    """The whole report; sections without anything to show are left out."""
    found = compare(study)
    sections = [
        Section("In short", _in_short(study, found)),
        Section("Table 1", (table_1(study),) if study.variants else ()),
        Section("Who drops, who balances", _balance(study)),
        Section("Frontier", (frontier_table(study), *frontier_pictures(study)) if study.variants else ()),
        Section("Learning curves", tuple(curve_pictures(study))),
        Section("Computation", (computation_table(study),) if study.variants else ()),
        Section("What was run", runs_table.parts(study)),
    ]
    return Document(title, lead(study, found), tuple(section for section in sections if section.parts))


def _in_short(study: Study, found: Comparisons) -> tuple[Part, ...]:
    said = words(study, found)
    parts: list[Part] = [Bullets(said)] if said else [Text("There is nothing to compare.")]
    return (*parts, comparison_table(found)) if found.all else tuple(parts)


def _balance(study: Study) -> tuple[Part, ...]:
    return (balance_table(study), *routing_pictures(study)) if study.sparse else ()
