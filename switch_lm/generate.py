"""Text from a trained model, a character at a time."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from switch_lm.command import MAX_SEED, finish, model_parser, number, open_model, whole_number

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from torch import Generator, Tensor

    from switch_lm.attention import LayerCache
    from switch_lm.model import SwitchLM, SwitchOutput
    from switch_lm.vocab import Vocabulary

START = "\n"  # what an empty prompt stands for: the corpus parts its speeches with it


def generate(
    model: SwitchLM,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    length: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """The `length` characters that the model puts after `prompt`, one at a time and without the prompt.

    Dropless, so that the text depends on the prompt and the seed alone. Temperature 0 takes the likeliest character;
    `top_k` leaves only that many to choose from. Of a prompt longer than the context the last `context_length`
    characters are read; an empty one stands for a newline. The global random state and the model's mode are as before
    at every character handed out. A ValueError names a character of the prompt that the model does not know.
    """
    import torch

    window = vocabulary.encode(prompt or START).tolist()[-model.config.context_length :]
    generator = torch.Generator().manual_seed(seed)
    return _continue(model, vocabulary, window, length, temperature, top_k, generator)


def _continue(
    model: SwitchLM,
    vocabulary: Vocabulary,
    window: list[int],
    length: int,
    temperature: float,
    top_k: int | None,
    generator: Generator,
) -> Iterator[str]:
    """A full cache is begun again from the last half window: positions are counted from the window's start."""
    context_length, cache, unread = model.config.context_length, model.new_cache(), window
    for _ in range(length):
        if len(window) > context_length:
            window = unread = window[-max(1, context_length // 2) :]
            cache = model.new_cache()
        logits_V = next_logits(model, unread, cache)
        unread = [sample(logits_V, temperature=temperature, top_k=top_k, generator=generator)]
        window = window + unread
        yield vocabulary.characters[unread[0]]


def next_logits(model: SwitchLM, ids: list[int], cache: list[LayerCache]) -> Tensor:
    """Logits (V), in float64 on the CPU, of the character after `ids`, which follow those in the cache."""
    import torch

    from switch_lm.model import evaluating

    with torch.inference_mode(), evaluating(model):
        ids_BS = torch.tensor([ids], device=model.embedding.weight.device)
        output: SwitchOutput = model(ids_BS, cache=cache, capacity_factor=None)
        return output.logits[0, -1].double().cpu()


def sample(logits_V: Tensor, *, temperature: float, top_k: int | None, generator: Generator) -> int:
    """One id, drawn from softmax(logits / temperature) over the `top_k` largest."""
    import torch

    if temperature == 0.0:
        return int(logits_V.argmax())
    logits_K, id_K = logits_V.topk(len(logits_V) if top_k is None else min(top_k, len(logits_V)))
    probs_K = ((logits_K - logits_K[0]) / temperature).softmax(dim=-1)  # the largest is 0: no overflow however cold
    return int(id_K[torch.multinomial(probs_K, 1, generator=generator)])


def temperature(text: str) -> float:
    """Reads a number that is finite and not negative."""
    value = number(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, 0 or more and finite; give for example 0.8")
    return value


def parser() -> argparse.ArgumentParser:
    about = "Writes text with a trained model. The text goes to stdout, all else to stderr."
    options = model_parser(prog="python -m switch_lm.generate", about=about)
    prompt = (
        "what the text begins with; one that begins with a dash needs --prompt=-... (default: a newline, not shown)"
    )
    options.add_argument("--prompt", default="", help=prompt)
    length = whole_number(at_least=0, example=500)
    options.add_argument("--length", type=length, default=500, help="characters after the prompt (default: 500)")
    heat = "below 1 is surer, above 1 wilder, 0 always takes the likeliest character (default: 0.8)"
    options.add_argument("--temperature", type=temperature, default=0.8, help=heat)
    top_k = whole_number(at_least=1, example=20)
    options.add_argument("--top-k", type=top_k, metavar="N", help="draw from the N likeliest characters (default: all)")
    seed = whole_number(at_least=0, at_most=MAX_SEED, example=0)
    options.add_argument("--seed", type=seed, default=0, help="the same seed gives the same text (default: 0)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return finish(lambda: _write(options))


def _write(options: argparse.Namespace) -> int:
    import torch

    from switch_lm.vocab import Vocabulary

    torch.set_num_threads(1)  # one character is too little to share: on a busy machine threads only wait for each other
    _, model, header = open_model(options.run, options.outputs)
    if len(options.prompt) > (read := model.config.context_length):
        print(f"the prompt has {len(options.prompt)} characters; the model reads the last {read}", file=sys.stderr)
    how = {"temperature": options.temperature, "top_k": options.top_k, "seed": options.seed}
    try:
        text = generate(model, Vocabulary(header.vocabulary), options.prompt, length=options.length, **how)
    except ValueError as error:
        print(f"--prompt: {error}; leave it out", file=sys.stderr)
        return 2
    print(options.prompt, end="", flush=True)
    for character in text:
        print(character, end="", flush=True)
    print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
