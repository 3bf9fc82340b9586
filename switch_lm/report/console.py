"""What the console says of a report: its table of results, its words, and where it is."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from switch_lm.pages.document import Table, numeric_columns
from switch_lm.report.write import Written

LINE_WIDTH = 120  # where the console is no terminal


def tell(written: Written) -> None:
    """Prints the lead last but for the files, where the eye is when a long command ends."""
    console = Console(width=None if sys.stdout.isatty() else LINE_WIDTH, highlight=False)
    if written.results.rows:
        console.print(_as_rich(written.results))
    lead, *others = (text.replace("`", "") for text in written.words)
    console.print("\n".join(f"- {text}" for text in others), markup=False)
    console.print(f"\n{lead}\n", markup=False)
    files = f"{written.markdown}, {written.page.name}, {written.table.name}, {written.pictures.name}/"
    console.print(f"report: {files}", markup=False, soft_wrap=True)


def _as_rich(table: Table) -> RichTable:
    shown = RichTable(title=table.caption, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading, right in zip(table.headings, numeric_columns(table), strict=True):
        shown.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(cell.text.replace("`", "") for cell in row))
    return shown
