"""Counts the statements of tracked Python files, by folder and in all: `python scripts/count.py`."""

import ast
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("switch_lm", "scripts", "tests")


def statements(text: str) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(text)))


def main() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    by_folder: Counter[str] = Counter()
    for file in filter(None, files.split("\0")):
        if (path := ROOT / file).exists():  # a file may be deleted and not yet committed
            by_folder[str(Path(file).parent)] += statements(path.read_text(encoding="utf-8"))
    for folder, count in sorted(by_folder.items()):
        print(f"{count:7,}  {folder}")
    for place in PLACES:
        print(f"{sum(n for folder, n in by_folder.items() if folder.split('/')[0] == place):7,}  {place} in all")


if __name__ == "__main__":
    main()
