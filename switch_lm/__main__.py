"""`python -m switch_lm` lists the commands."""

from __future__ import annotations

import runpy
import sys

from switch_lm import __version__

COMMANDS = {
    "train": "train a model, or sweep: key=value overrides the configuration",
    "generate": "write text with a trained model",
    "evaluate": "measure a trained model: loss, capacity factors, baselines",
    "check": "certify what a model's routing leaks, drops and learns",
    "inspect": "show what the experts do: a page, pictures, tables",
    "report": "compare runs in words, tables and pictures",
    "export": "write a model for other programs: safetensors, transformers",
    "dashboard": "show runs in TensorBoard",
    "corpus": "download a text",
}


def main() -> int:
    """The exit code: 2 for a word that is no command. `python -m switch_lm train ...` runs the command."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        sys.argv = words
        runpy.run_module(f"switch_lm.{words[0]}", run_name="__main__", alter_sys=True)
        return 0
    lines = [f"  python -m switch_lm.{name:<10} {what}" for name, what in COMMANDS.items()]
    usage = "\n".join(
        [
            f"switch_lm {__version__}: Switch Transformers on text",
            "",
            *lines,
            "",
            "Add --help to any command for its options.",
        ]
    )
    if words == ["--version"]:
        print(f"switch_lm {__version__}")
    elif words in ([], ["-h"], ["--help"]):
        print(usage)
    else:
        print(f"python -m switch_lm {words[0]}: no such command\n\n{usage}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
