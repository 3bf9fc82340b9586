"""Fetches the text: `python -m switch_lm.corpus`."""

import os
import sys
from pathlib import Path

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import as_path
from switch_lm.commandline.help import command_parser
from switch_lm.commandline.signals import ended_by_signals
from switch_lm.text.corpus import TEXTS, load_corpus
from switch_lm.text.given import FILE_VARIABLE, CorpusError


@survive_closed_pipe()
@ended_by_signals()
def main() -> int:
    """Fetch a text once, so that later runs need no network."""
    examples = {"": "Tiny Shakespeare", "--text plays": "and 29 more plays"}
    parser = command_parser("corpus", str(main.__doc__), examples)
    parser.add_argument("--data-dir", type=as_path, default=Path("data"), help="where the copy is kept (default: data)")
    about = "tiny_shakespeare, or plays: 29 more plays before it (default: tiny_shakespeare)"
    parser.add_argument("--text", choices=TEXTS, default="tiny_shakespeare", help=about)
    options = parser.parse_args()
    try:
        corpus = load_corpus(data_dir=options.data_dir, text=options.text)
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 1
    given = os.environ.get(FILE_VARIABLE) if options.text == "tiny_shakespeare" else None
    path = given or options.data_dir / TEXTS[options.text].file
    print(f"path    {path}\nsource  {corpus.source}\nsha256  {corpus.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
