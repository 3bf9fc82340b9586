"""Writes text with a trained model: `python -m switch_lm.generate`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    MAX_SEED,
    as_path,
    compute_on,
    finish,
    model_parser,
    number,
    open_model,
    require_writable,
    whole_number,
    write_text,
)

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from switch_lm.generation.trace import Traced


def temperature(text: str) -> float:
    """Parses a finite number that is not negative."""
    value = number(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, 0 or more and finite; give for example 0.8")
    return value


def share(text: str) -> float:
    """Parses a number above 0, and at most 1."""
    value = number(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and at most 1; give for example 0.9")
    return value


def page_file(text: str) -> Path:
    """Parses the name of a file."""
    if not (file := as_path(text)).name:
        raise argparse.ArgumentTypeError(f"{text!r} must be a file's name; give for example sample.html")
    return file


def parser() -> argparse.ArgumentParser:
    about = "Writes text with a trained model. The text goes to stdout, everything else to stderr."
    examples = {
        "": "with the newest run",
        '--run NAME --prompt "ROMEO:" --top-p 0.9': "only from the likely characters",
        "--html sample.html": "also a page, coloured by expert",
    }
    options = model_parser("generate", about, examples, computes="the CPU, 1 thread")
    add = options.add_argument
    words = "the beginning of the text; if it begins with a dash, use --prompt=-... (default: the model's own start)"
    add("--prompt", default="", help=words)
    length = whole_number(at_least=0, example=500)
    add("--length", type=length, default=500, help="characters after the prompt (default: 500)")
    words = "below 1: less random, above 1: more random, 0: always the most probable character (default: 0.8)"
    add("--temperature", type=temperature, default=0.8, help=words)
    top_k = whole_number(at_least=1, example=20)
    add("--top-k", type=top_k, metavar="N", help="sample from the N most probable characters (default: all)")
    words = (
        "sample from the smallest set of most probable characters that have a probability of P together, such as 0.9"
    )
    add("--top-p", type=share, metavar="P", help=f"{words} (default: all)")
    seed = whole_number(at_least=0, at_most=MAX_SEED, example=0)
    add("--seed", type=seed, default=0, help="the same seed gives the same text (default: 0)")
    words = "also write a page that shows the text coloured by expert, all layers at once or each alone, with the "
    add("--html", type=page_file, metavar="FILE", help=f"{words}alternatives to each character")
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return finish(lambda: _write(options))


def _write(options: argparse.Namespace) -> int:
    from switch_lm.generation.sampling import generate
    from switch_lm.generation.trace import trace
    from switch_lm.pages.characters import harmless
    from switch_lm.text.characters import named
    from switch_lm.text.vocabulary import Vocabulary

    # A pass over one character is too short to share among threads, and to send to a GPU.
    device = compute_on(options, device="cpu", threads=1)
    path, model, header = open_model(options.run, options.outputs, options.average)
    model.to(device)
    if options.html is not None:
        require_writable(options.html, option="--html FILE")
    vocabulary = Vocabulary(header.vocabulary, header.start)
    if not options.prompt and vocabulary.start != "\n":
        options.prompt = vocabulary.start
        print(
            f"no --prompt, and no newline in the model's text: it begins with {named(options.prompt)}",
            file=sys.stderr,
        )
    if len(options.prompt) > (read := model.config.context_length):
        print(f"the prompt has {len(options.prompt)} characters; the model reads the last {read}", file=sys.stderr)
    how = {name: getattr(options, name) for name in ("prompt", "length", "temperature", "top_k", "top_p", "seed")}
    traced: list[Traced] = []
    try:
        if options.html is None:
            text = generate(model, vocabulary, **how)
        else:
            text = _keeping(trace(model, vocabulary, **how), traced)
    except ValueError as error:
        print(f"--prompt: {error}; use characters that the model knows, or leave out --prompt", file=sys.stderr)
        return 2
    for part in chain([options.prompt], text):
        print(harmless(part) if sys.stdout.isatty() else part, end="", flush=True)
    print(flush=True)
    if options.html is not None:
        from switch_lm.generation.page import Sampling, sample_page  # the first character need not wait for it

        sizes = model.config
        sampling = Sampling(checkpoint=path, num_experts=sizes.num_experts, blocks=sizes.switch_blocks, **how)
        page = sample_page(traced, sampling)
        write_text(page, options.html, option="--html FILE")
    return 0


def _keeping(characters: Iterator[Traced], traced: list[Traced]) -> Iterator[str]:
    """Yields the text after the prompt, and appends the trace of both to `traced`."""
    for one in characters:
        traced.append(one)
        if one.odds is not None:
            yield one.character


if __name__ == "__main__":
    sys.exit(main())
