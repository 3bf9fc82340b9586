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


@dataclass(frozen=True)
class Rule:
    """How a character is drawn: from softmax(logits / temperature), restricted to the most probable ones."""

    temperature: float = 0.8  # 0: always the most probable one
    top_k: int | None = None  # of that many; None: of all
    top_p: float | None = None  # from the smallest set with that total probability (Holtzman et al. 2020); None: of all

    def probabilities(self, logits_V: Tensor) -> tuple[Tensor, Tensor]:
        """Those that can be drawn, in descending order, with their ids; both (K,)."""
        logits_K, id_K = logits_V.topk(len(logits_V) if self.top_k is None else min(self.top_k, len(logits_V)))
        probs_K = ((logits_K - logits_K[0]) / self.temperature).softmax(dim=-1)  # at most 0: no overflow
        if self.top_p is None:
            return probs_K, id_K
        drawn_K = probs_K.cumsum(0) - probs_K < self.top_p  # what comes before does not suffice
        return probs_K[drawn_K] / probs_K[drawn_K].sum(), id_K[drawn_K]


def generate(
    model: SwitchLM,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    length: int,
    seed: int = 0,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[str]:
    """Yields the `length` characters that the model writes after `prompt`, without the prompt.

    Generation is dropless, so the text depends on nothing but prompt, settings and seed. `temperature`, `top_k` and
    `top_p` are those of `Rule`. Only the last `context_length` characters of a prompt are read; an empty one stands for
    `vocabulary.start`. At each character, torch's global random state and the model's mode are what they were before.
    ValueError names a character of the prompt that the model does not know.
    """
    drawn = draws(model, vocabulary, prompt, Rule(temperature, top_k, top_p), length=length, seed=seed)
    return (vocabulary.characters[draw.id] for draw in drawn)


def draws(
    model: SwitchLM, vocabulary: Vocabulary, prompt: str, rule: Rule, *, length: int, seed: int
) -> Iterator[Draw]:
    """The same, with the result of each pass over the model."""
    window = vocabulary.encode(prompt or vocabulary.start).tolist()[-model.config.context_length :]
    generator = torch.Generator().manual_seed(seed)
    return _continue(model, window, length, rule, generator)


def _continue(model: SwitchLM, window: list[int], length: int, rule: Rule, generator: Generator) -> Iterator[Draw]:
    """Once the cache is full, starts again from the last half window: positions count from the window's start."""
    context_length, cache, unread = model.config.context_length, model.new_cache(), window
    for _ in range(length):
        new = len(unread)
        if len(window) > context_length:
            window = unread = window[-max(1, context_length // 2) :]
            cache = model.new_cache()
        reading = read(model, unread, cache)
        unread = [sample(reading.logits_V, rule, generator)]
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
        drawn = [sample(logits_V, Rule(1.0), generator) for logits_V, generator in rows]
        unread_BS = torch.tensor(drawn)[:, None]
        ids_BS, window = torch.cat([ids_BS, unread_BS], dim=1), window + 1
    return ids_BS[:, ids_BS.shape[1] - length :]


def read(model: SwitchLM, ids: list[int], cache: list[LayerCache]) -> Reading:
    """Reads `ids`, which follow those in the cache, dropless and in `eval()`."""
    with torch.inference_mode(), evaluating(model):
        ids_BS = torch.tensor([ids], device=model.embedding.weight.device)
        output: SwitchOutput = model(ids_BS, cache=cache, capacity_factor=None)
        return Reading(output.logits[0, -1].cpu().double(), output.routings)


def sample(logits_V: Tensor, rule: Rule, generator: Generator) -> int:
    """Draws one id."""
    if rule.temperature == 0.0:
        return int(logits_V.argmax())
    probs_K, id_K = rule.probabilities(logits_V)
    return int(id_K[torch.multinomial(probs_K, 1, generator=generator)])
