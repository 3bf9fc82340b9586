"""The drawings show what the router does, and the committed ones are those that the code makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def words(file: Path) -> list[str]:
    """All that is written in a drawing."""
    return [line.strip() for line in re.findall(r"<text[^>]*>([^<]*)</text>", file.read_text(encoding="utf-8"))]


def test_the_committed_drawings_are_those_of_the_code_and_two_of_five_tokens_are_dropped(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "scripts/drawings.py", str(tmp_path)], cwd=ROOT, check=True)
    for file in tmp_path.iterdir():
        assert words(file) == words(ROOT / "docs" / file.name) != []
    shown = words(tmp_path / "capacity.svg")
    assert [line for line in shown if "load" in line] == [f"expert {e}: load {n}" for e, n in enumerate((4, 0, 1, 0))]
    assert shown.count("is full") == 2 and "capacity = ceil(1 x 5 tokens / 4 experts) = 2 slots each" in shown
