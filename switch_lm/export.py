"""Writes a trained model to a folder for other programs: `python -m switch_lm.export --run NAME --to DIR`."""

from __future__ import annotations

import argparse
import glob
import os
import secrets
import shutil
import sys
import time
from collections.abc import Sequence

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    UsageError,
    as_path,
    finish,
    model_parser,
    open_model,
    require_extra,
    writing,
)
from switch_lm.config.keys import ConfigError
from switch_lm.storage.files import replacing
from switch_lm.storage.runs import RunError

FORMATS = ("safetensors", "transformers")
ABANDONED = 3600.0  # seconds: an export writes its files in moments


def parser() -> argparse.ArgumentParser:
    about = (
        "Writes a trained model to a new folder: weights as safetensors, configuration, vocabulary and a model card. "
        "switch_lm.load(DIR) reads it; with --format transformers AutoModelForCausalLM does, too."
    )
    examples = {"--to DIR": "the newest run", "--run NAME --to DIR --format transformers": "for transformers"}
    options = model_parser("export", about, examples, computes=None)
    options.add_argument("--to", type=as_path, metavar="DIR", required=True, help="the folder, which must be new")
    words = "transformers adds the code that it needs (default: safetensors)"
    options.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=words)
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return finish(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    from switch_lm.storage.checkpoint import CheckpointError

    folder, for_transformers = options.to, options.format == "transformers"
    if os.path.lexists(folder):
        raise UsageError(f"--to {folder} exists: an export makes a new folder; give another, or remove it")
    require_extra("safetensors", what="export", otherwise="load the run itself with switch_lm.load")
    from switch_lm.exporting.folder import files_of, refusal

    try:
        path, model, header = open_model(options.run, options.outputs, options.average)
    except (RunError, CheckpointError, ConfigError) as error:
        raise UsageError(str(error)) from error
    if for_transformers and (problem := refusal(header, model)) is not None:
        raise UsageError(problem)
    files = files_of(model, header, path, average=options.average, for_transformers=for_transformers)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    with writing(folder, num_bytes=sum(map(len, files.values())), option="--to DIR"):
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):  # by an export that was killed
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            for name, content in files.items():
                with replacing(beside / name) as file:  # on the disk before the folder has its name
                    file.write(content)
            os.rename(beside, folder)  # noqa: PTH104  names the atomic rename
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    print(f"written: {folder}/{{{','.join(files)}}}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
