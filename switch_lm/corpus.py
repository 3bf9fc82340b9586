"""Fetches the text: `python -m switch_lm.corpus`."""

import argparse
import os
import sys
from pathlib import Path

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import as_path
from switch_lm.commandline.signals import ended_by_signals
from switch_lm.text.corpus import FILE_VARIABLE, TINY_SHAKESPEARE_FILE, CorpusError, load_corpus


@survive_closed_pipe()
@ended_by_signals()
def main() -> int:
    """Fetch Tiny Shakespeare once, so that later runs need no network."""
    parser = argparse.ArgumentParser(prog="python -m switch_lm.corpus", description=main.__doc__)
    parser.add_argument("--data-dir", type=as_path, default=Path("data"), help="where the copy is kept (default: data)")
    data_dir: Path = parser.parse_args().data_dir
    try:
        corpus = load_corpus(data_dir=data_dir)
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 1
    path = os.environ.get(FILE_VARIABLE) or data_dir / TINY_SHAKESPEARE_FILE
    print(f"path    {path}\nsource  {corpus.source}\nsha256  {corpus.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
