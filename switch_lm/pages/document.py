"""The contents of a report, apart from their form: sections of texts, tables and pictures."""

import re
from dataclasses import dataclass

from switch_lm.pages.characters import harmless
from switch_lm.pages.coloured_text import ColouredText
from switch_lm.pages.expert_cards import ExpertCards
from switch_lm.pages.tiles import Tiles

BLANK = ("", "-", "–", "—")  # cells without a value; sorted last in both directions


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` in backquotes is the only markup."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Short statements, one per line; markup as in Text."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to show, or to copy, as they are."""

    text: str


@dataclass(frozen=True)
class Cell:
    """The text that a table shows, and the number to sort it by if the text has units or a spread.

    `code` in backquotes is the only markup, here as in captions, notes and headings. A word among numbers, such as
    "diverged", keeps its column numeric with `sort=math.inf`.
    """

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Table:
    """Each row has as many cells as there are headings; `note` tells a reader how to read the table."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line or one set of points. `low` and `high` bound an interval around each y; `labels` names each point.

    Labelled points have an entry each in the legend.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    line: bool = True  # joined; else points alone


@dataclass(frozen=True)
class Picture:
    """One pair of axes. `name` is the file's stem, `alt` describes the picture in words."""

    name: str
    title: str
    alt: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    note: str = ""
    x_names: tuple[str, ...] = ()  # of x = 0, 1, 2, ...; each point is then a bar from zero, the series side by side
    sideways: bool = False  # with x_names: these below each other, y across, each point a dot with its interval


@dataclass(frozen=True)
class Place:
    """A variant in a Scatter: its mean, and its `runs` as pairs of x and y.

    `level`: how many slots its experts have, None for none; `group`: its entry in the legend; `front`: no other one
    is as low in both.
    """

    label: str
    kind: str  # each has a form of its own
    level: float | None
    group: str
    x: float
    y: float
    runs: tuple[tuple[float, float], ...]
    front: bool
    hover: str  # what is shown under the pointer


@dataclass(frozen=True)
class Scatter:
    """Means with the runs that they are of; names as in Picture."""

    name: str
    title: str
    alt: str
    x_label: str
    y_label: str
    places: tuple[Place, ...]
    x_log: bool = False
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Rows by columns of numbers, as colours on a fixed scale that is shown above them; NaN is left blank.

    `centre`: the value of the middle colour, where the scale has two sides; None: from low to high.
    """

    name: str
    title: str
    alt: str
    x_label: str
    y_label: str
    value_label: str
    x_names: tuple[str, ...]  # of columns
    y_names: tuple[str, ...]  # of rows, from the top
    values: tuple[tuple[float, ...], ...]
    low: float
    high: float
    centre: float | None = None
    note: str = ""
    in_bands: bool = False  # the columns, in several bands below each other, so that every name can be read


Drawn = Picture | Scatter | HeatMap


@dataclass(frozen=True)
class Beside:
    """Pictures beside each other, where there is room."""

    pictures: tuple[Drawn, ...]


Part = Text | Bullets | Code | Table | Tiles | Drawn | Beside | ColouredText | ExpertCards


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it."""

    heading: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Document:
    """`lead` is the result in one or two sentences, for a reader in a hurry; `opening` stands below it."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    opening: tuple[Part, ...] = ()

    @property
    def pictures(self) -> list[Drawn]:
        """All of them, in order."""
        parts = [*self.opening, *(part for section in self.sections for part in section.parts)]
        groups = (part.pictures if isinstance(part, Beside) else (part,) for part in parts)
        return [part for group in groups for part in group if isinstance(part, Drawn)]


def number(cell: Cell) -> float | None:
    """The number to sort the cell by: `sort`, or its text if that is a plain number such as 1,024, −0.5 or 12%."""
    if cell.sort is not None:
        return cell.sort
    text = cell.text.strip().replace(",", "").replace("−", "-").removesuffix("%").rstrip()
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE) else None


def numeric_columns(table: Table) -> tuple[bool, ...]:
    """For each column, whether it holds numbers and blanks only."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.headings))]
    filled = [[c for c in column if c.sort is not None or c.text.strip() not in BLANK] for column in columns]
    return tuple(bool(cells) and all(number(cell) is not None for cell in cells) for cells in filled)


def pieces(text: str) -> list[tuple[str, bool]]:
    """The text on one line, split at its backquotes: each piece, and whether it is code; a lone backquote is text."""
    cut = re.split(r"`([^`]+)`", harmless(re.sub(r"\s+", " ", text).strip()))
    return [(piece, i % 2 == 1) for i, piece in enumerate(cut) if piece]
