"""How the parts of a document read on a console."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from switch_lm.pages.characters import harmless, isolated
from switch_lm.pages.document import Table, numeric_columns
from switch_lm.pages.tiles import Tiles

LINE_WIDTH = 120  # where the console is no terminal


def console(*, at_least: int = 0, markup: bool = False, quiet: bool = False) -> Console:
    """As wide as the terminal, but at least so many characters, without colours of its own; in a notebook too."""
    wide = sys.stdout.isatty() and Console().width >= at_least
    width = None if wide else max(at_least, LINE_WIDTH)  # None: as the terminal, which may be resized
    return Console(width=width, highlight=False, markup=markup, quiet=quiet, force_jupyter=False)


def shown(text: str) -> str:
    """Without the marks of code, and harmless."""
    return isolated(harmless(text.replace("`", "")))


def print_tiles(to: Console, tiles: Tiles) -> None:
    """A line for each, the values below each other."""
    width = max((len(tile.name) for tile in tiles.items), default=0)
    for tile in tiles.items:
        to.print(f"{tile.name:<{width}}  {shown(f'{tile.value}, {tile.note}')}")


def print_table(to: Console, table: Table, *, columns: Sequence[int]) -> None:
    """Some of its columns, numbers to the right; nothing without rows."""
    if table.rows:
        lines, numeric = RichTable(box=box.SIMPLE_HEAD), numeric_columns(table)
        for n in columns:
            lines.add_column(shown(table.headings[n]), justify="right" if numeric[n] else "left", overflow="fold")
        for row in table.rows:
            lines.add_row(*(shown(row[n].text) for n in columns))
        to.print(lines)
