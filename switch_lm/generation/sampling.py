"""Samples text from a trained model, one character at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from switch_lm.model.attention import LayerCache
from switch_lm.model.transformer import SwitchLM, SwitchOutput, evaluating
from switch_lm.routers.routing import Routing
from switch_lm.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Reading:
    """The result of one pass over the model."""

    logits_V: Tensor  # of the character after those read; float64, on the CPU
    routings: tuple[Routing, ...]  # of the characters read in this pass


@dataclass(frozen=True)
class Draw:
    """A sampled character, and the pass from which it was sampled."""

    id: int
    reading: Reading
    new: int  # how many characters, the last ones of that pass, were read for the first time


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
    """Yields the `length` characters that the model writes after `prompt`, without the prompt.

    Generation is dropless, so the text depends on nothing but prompt, settings and seed. Temperature 0 always takes the
    most probable character; `top_k` samples from that many. Only the last `context_length` characters of a prompt are
    read; an empty one stands for `vocabulary.start`. At each character, torch's global random state and the model's
    mode are what they were before. ValueError names a character of the prompt that the model does not know.
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
    """The same, with the result of each pass over the model."""
    window = vocabulary.encode(prompt or vocabulary.start).tolist()[-model.config.context_length :]
    generator = torch.Generator().manual_seed(seed)
    return _continue(model, window, length, temperature, top_k, generator)


def _continue(
    model: SwitchLM, window: list[int], length: int, temperature: float, top_k: int | None, generator: Generator
) -> Iterator[Draw]:
    """Once the cache is full, starts again from the last half window: positions count from the window's start."""
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


def texts(model: SwitchLM, vocabulary: Vocabulary, *, length: int, seeds: Sequence[int]) -> Tensor:
    """The ids (B, length) that `generate` draws without a prompt at temperature 1 with each of B seeds, at once."""
    generators, window = [torch.Generator().manual_seed(seed) for seed in seeds], len(vocabulary.start)
    ids_BS = unread_BS = vocabulary.encode(vocabulary.start).expand(len(seeds), -1)
    cache, context_length = model.new_cache(), model.config.context_length
    for _ in range(length):
        if window > context_length:
            window = max(1, context_length // 2)
            cache, unread_BS = model.new_cache(), ids_BS[:, -window:]
        with torch.inference_mode(), evaluating(model):
            output = model(unread_BS.to(model.embedding.weight.device), cache=cache, capacity_factor=None)
        rows = zip(output.logits[:, -1].cpu().double(), generators, strict=True)
        drawn = [sample(logits_V, temperature=1.0, top_k=None, generator=generator) for logits_V, generator in rows]
        unread_BS = torch.tensor(drawn)[:, None]
        ids_BS, window = torch.cat([ids_BS, unread_BS], dim=1), window + 1
    return ids_BS[:, ids_BS.shape[1] - length :]


def read(model: SwitchLM, ids: list[int], cache: list[LayerCache]) -> Reading:
    """Reads `ids`, which follow those in the cache, dropless and in `eval()`."""
    with torch.inference_mode(), evaluating(model):
        ids_BS = torch.tensor([ids], device=model.embedding.weight.device)
        output: SwitchOutput = model(ids_BS, cache=cache, capacity_factor=None)
        return Reading(output.logits[0, -1].cpu().double(), output.routings)


def sample(logits_V: Tensor, *, temperature: float, top_k: int | None, generator: Generator) -> int:
    """Samples one id from softmax(logits / temperature) over the `top_k` largest logits; None: over all."""
    if temperature == 0.0:
        return int(logits_V.argmax())
    probs_K, id_K = probabilities(logits_V, temperature=temperature, top_k=top_k)
    return int(id_K[torch.multinomial(probs_K, 1, generator=generator)])


def probabilities(logits_V: Tensor, *, temperature: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """softmax(logits / temperature) over the `top_k` largest logits, in descending order, and their ids; both (K,)."""
    logits_K, id_K = logits_V.topk(len(logits_V) if top_k is None else min(top_k, len(logits_V)))
    return ((logits_K - logits_K[0]) / temperature).softmax(dim=-1), id_K  # at most 0: no overflow at any temperature
