"""Runs docs/switch_lm.ipynb from a clean kernel, and stores what it shows; with --check it stores nothing.

Exit code 1 if it fails, if it is too large, or, unless it is only checked, if it takes over 120 seconds.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from switch_lm.storage.files import replace_text

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "switch_lm.ipynb"
MOST_SECONDS, MOST_BYTES = 120, 400_000


def main() -> int:
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # commands shown begin: python
    )
    began, notebook, checks = time.monotonic(), nbformat.read(NOTEBOOK, 4), sys.argv[1:] == ["--check"]
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    limit = 10 * MOST_SECONDS if checks else MOST_SECONDS  # a busy machine is no fault
    NotebookClient(notebook, timeout=limit, coalesce_streams=True, record_timing=False, resources=place).execute()
    seconds = time.monotonic() - began
    text = nbformat.writes(notebook) + "\n"
    print(f"{NOTEBOOK}: {seconds:.0f} s, {len(text.encode()):,} bytes")
    if seconds > limit or len(text.encode()) > MOST_BYTES:
        return 1
    if not checks:
        replace_text(NOTEBOOK, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
