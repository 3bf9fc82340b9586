"""Runs docs/switch_lm.ipynb from a clean kernel, and stores what it shows. Exit code 1 if it takes over 120 seconds."""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "switch_lm.ipynb"
MOST_SECONDS, MOST_BYTES = 120, 400_000


def main() -> int:
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # commands shown begin: python
    )
    began, notebook = time.monotonic(), nbformat.read(NOTEBOOK, 4)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(
        notebook, timeout=MOST_SECONDS, coalesce_streams=True, record_timing=False, resources=place
    ).execute()
    seconds = time.monotonic() - began
    text = nbformat.writes(notebook) + "\n"
    NOTEBOOK.write_text(text, encoding="utf-8")
    print(f"{NOTEBOOK}: {seconds:.0f} s, {len(text.encode()):,} bytes")
    return int(seconds > MOST_SECONDS or len(text.encode()) > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
