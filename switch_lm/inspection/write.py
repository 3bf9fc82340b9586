"""Where an inspection goes, and how it is written: whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from switch_lm.commandline.command import writing
from switch_lm.inspection.contents import build
from switch_lm.inspection.study import Inspection
from switch_lm.inspection.tables import Row, files
from switch_lm.pages.document import Document, HeatMap, Picture
from switch_lm.pages.page import to_html
from switch_lm.pages.pictures import save
from switch_lm.storage.files import replace_text

PAGE, PICTURES, TABLES = "inspect.html", "pictures", "tables"


def write(found: Sequence[Inspection], folder: Path, *, command: str) -> Path:
    """`inspect.html`, `pictures/*.png` and `tables/*.csv`; the page's path. All is made before anything is replaced.

    A CommandError if the disk does not take them.
    """
    document = build(found, command=command)
    page = to_html(document)
    tables = {name: as_csv(rows) for name, rows in together(found).items()}
    num_bytes = sum(len(text.encode()) for text in (page, *tables.values()))  # the pictures come on top
    with writing(folder, num_bytes=num_bytes, option="--out FOLDER"):
        _write(document, page, tables, folder)
    return folder / PAGE


def _write(document: Document, page: str, tables: dict[str, str], folder: Path) -> None:
    for place in (PICTURES, TABLES):
        (folder / place).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        for part in (part for section in document.sections for part in section.parts):
            if isinstance(part, Picture | HeatMap):
                save(part, Path(temporary))
        pictures = {file.name for file in Path(temporary).glob("*.png")}
        for name in pictures:
            os.replace(Path(temporary) / name, folder / PICTURES / name)
    for name, text in tables.items():
        replace_text(folder / TABLES / f"{name}.csv", text)
    for place, names in ((PICTURES, pictures), (TABLES, {f"{name}.csv" for name in tables})):
        for file in (folder / place).iterdir():
            if file.suffix in (".png", ".csv") and file.name not in names:  # of an inspection before this one
                file.unlink()
    replace_text(folder / PAGE, page)


def together(found: Sequence[Inspection]) -> dict[str, list[Row]]:
    """The rows of all models, with the model's name in front."""
    rows: dict[str, list[Row]] = {}
    for one in found:
        for name, of_one in files(one).items():
            rows.setdefault(name, []).extend({"run": one.name} | row for row in of_one)
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """With a line of headings; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
