"""Text from a trained model, a character at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from torch import Generator, Tensor

    from switch_lm.model.attention import LayerCache
    from switch_lm.model.transformer import SwitchLM, SwitchOutput
    from switch_lm.routers.routing import Routing
    from switch_lm.text.vocabulary import Vocabulary

START = "\n"  # what an empty prompt stands for: the corpus parts its speeches with it


@dataclass(frozen=True)
class Reading:
    """What one pass over the model gave."""

    logits_V: Tensor  # float64 on the CPU, of the character after those read
    routings: tuple[Routing, ...]  # of all that were read in this pass


@dataclass(frozen=True)
class Draw:
    """One character drawn, and the pass that it was drawn from."""

    id: int
    reading: Reading
    new: int  # of the characters read in that pass, the last `new` had not been read before


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
    drawn = draws(model, vocabulary, prompt, length=length, temperature=temperature, top_k=top_k, seed=seed)
    return (vocabulary.characters[draw.id] for draw in drawn)


def draws(
    model: SwitchLM,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    length: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[Draw]:
    """What `generate` does, character by character, with all that each pass over the model gave."""
    import torch

    window = vocabulary.encode(prompt or START).tolist()[-model.config.context_length :]
    generator = torch.Generator().manual_seed(seed)
    return _continue(model, window, length, temperature, top_k, generator)


def _continue(
    model: SwitchLM, window: list[int], length: int, temperature: float, top_k: int | None, generator: Generator
) -> Iterator[Draw]:
    """A full cache is begun again from the last half window: positions are counted from the window's start."""
    context_length, cache, unread = model.config.context_length, model.new_cache(), window
    for _ in range(length):
        new = len(unread)
        if len(window) > context_length:
            window = unread = window[-max(1, context_length // 2) :]
            cache = model.new_cache()
        reading = read(model, unread, cache)
        unread = [sample(reading.logits_V, temperature=temperature, top_k=top_k, generator=generator)]
        window = window + unread
        yield Draw(unread[0], reading, new)


def read(model: SwitchLM, ids: list[int], cache: list[LayerCache]) -> Reading:
    """Reads `ids`, which follow those in the cache."""
    import torch

    from switch_lm.model.transformer import evaluating

    with torch.inference_mode(), evaluating(model):
        ids_BS = torch.tensor([ids], device=model.embedding.weight.device)
        output: SwitchOutput = model(ids_BS, cache=cache, capacity_factor=None)
        return Reading(output.logits[0, -1].double().cpu(), output.routings)


def next_logits(model: SwitchLM, ids: list[int], cache: list[LayerCache]) -> Tensor:
    """Logits (V), in float64 on the CPU, of the character after `ids`, which follow those in the cache."""
    return read(model, ids, cache).logits_V


def sample(logits_V: Tensor, *, temperature: float, top_k: int | None, generator: Generator) -> int:
    """One id, drawn from softmax(logits / temperature) over the `top_k` largest."""
    import torch

    if temperature == 0.0:
        return int(logits_V.argmax())
    probs_K, id_K = probabilities(logits_V, temperature=temperature, top_k=top_k)
    return int(id_K[torch.multinomial(probs_K, 1, generator=generator)])


def probabilities(logits_V: Tensor, *, temperature: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """softmax(logits / temperature) over the `top_k` largest, largest first, and whose each is."""
    logits_K, id_K = logits_V.topk(len(logits_V) if top_k is None else min(top_k, len(logits_V)))
    return ((logits_K - logits_K[0]) / temperature).softmax(dim=-1), id_K  # the largest is 0: no overflow however cold
