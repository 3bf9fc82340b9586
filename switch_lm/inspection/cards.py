"""What stands out among each expert's characters: classes, characters, bigrams, and contexts sampled by gate."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.pages.characters import visible
from switch_lm.pages.coloured_text import busiest
from switch_lm.pages.expert_cards import percent
from switch_lm.pages.expert_maps import layer_name
from switch_lm.probe.reading import Probe
from switch_lm.stats.shares import TIMES, ClassShare, class_shares

NAMED, MOST_COMMON = 2, 4  # classes in a line; characters on a card
SAMPLED, PART, BEFORE, AFTER = 2, 20, 18, 10  # contexts from a 20th of the gates; characters around each
PATH = "follows"  # begins the name of a class by the expert of the layer before
Assignments = Sequence[tuple[int, int, float]]  # of a layer: character (row x S + position), expert, gate
Context = tuple[str, float, tuple[str, str, str]]  # how high the gate is, the gate, and before, character, after
Common = tuple[tuple[str, float, float], ...]  # what, its share of the expert's characters, and of the text


@dataclass(frozen=True)
class ExpertCard:
    """One expert of one layer, on the probe with nothing dropped."""

    block: int
    expert: int
    load: float  # share of the text's characters that it gets
    classes: tuple[ClassShare, ...]  # all that were compared
    characters: Common
    bigrams: Common  # each ends with one of the expert's characters
    contexts: tuple[Context, ...]

    @property
    def name(self) -> str:
        return f"{layer_name(self.block)}, expert {self.expert}"

    def named(self, comparisons: int) -> list[ClassShare]:
        """The classes that stand out, the strongest first, and those by the expert before after all others."""
        clear = [x for x in self.classes if x.least(comparisons) > TIMES]
        return sorted(clear, key=lambda x: (x.name.startswith(PATH), -x.least(comparisons)))

    def line(self, comparisons: int) -> str:
        """Such as "capitals and speaker names, 20% of the text"; `comparisons`: of all cards of the page."""
        named = " and ".join(x.name for x in self.named(comparisons)[:NAMED]) or "no class stands out"
        return f"{named}, {percent(self.load)} of the text"


@dataclass(frozen=True)
class Cards:
    """Of each layer those of its experts, of more than 64 the busiest."""

    layers: tuple[tuple[ExpertCard, ...], ...]

    @property
    def comparisons(self) -> int:
        """How many classes were compared at all experts."""
        return sum(len(card.classes) for layer in self.layers for card in layer)


def cards(
    assignments: Sequence[Assignments],
    marks: Mapping[str, Tensor],
    probe: Probe,
    characters: str,
    *,
    blocks: Sequence[int],
    num_experts: int,
    seed: int = 0,
) -> Cards:
    """From all assignments of each layer on the probe; `marks`: the classes; `characters`: what each id stands for."""
    (B, S), result, paths, draw = probe.ids_BS.shape, [], dict[str, Tensor](), torch.Generator().manual_seed(seed)
    before_BS = probe.split_ids[(probe.place_BS - 1).clamp(min=0)]
    text, before = ([characters[i] for i in ids_BS.flatten().tolist()] for ids_BS in (probe.ids_BS, before_BS))
    pairs = [first + second for first, second in zip(before, text, strict=True)]
    for block, of_layer in zip(blocks, assignments, strict=True):
        token_N, expert_N = (torch.tensor([row[i] for row in of_layer], dtype=torch.long) for i in (0, 1))
        gate_N = torch.tensor([row[2] for row in of_layer])
        shown = busiest(expert_N.bincount(minlength=num_experts).tolist())
        at_EBS = torch.zeros(len(shown), B * S, dtype=torch.bool)
        for row, expert in enumerate(shown):
            at_EBS[row, token_N[expert_N == expert]] = True
        at_EBS = at_EBS.view(-1, B, S)
        every = {name: mark_BS.cpu() for name, mark_BS in marks.items()} | paths
        classes = class_shares(at_EBS, every)
        of_experts = []
        for row, expert in enumerate(shown):
            mine_N = (expert_N == expert).nonzero()[:, 0]
            order_N = mine_N[gate_N[mine_N].argsort(descending=True, stable=True)]
            load, contexts = len(mine_N) / (B * S), _contexts(order_N, token_N, gate_N, text, S, draw)
            common = [_common([x[t] for t in token_N[mine_N].tolist()], x) for x in (text, pairs)]
            of_experts.append(ExpertCard(block, expert, load, classes[row], common[0], common[1], contexts))
        path = f"{PATH} {layer_name(block)}'s expert"
        paths = {f"{path} {e}": at_BS for e, at_BS in zip(shown, at_EBS, strict=True) if at_BS.any()}
        result.append(tuple(of_experts))
    return Cards(tuple(result))


def _common(own: Sequence[str], text: Sequence[str]) -> Common:
    """The most common of an expert's characters or bigrams, beside their share in the text."""
    counts, of_text = Counter(own), Counter(text)
    return tuple(
        ("".join(map(visible, what)), count / len(own), of_text[what] / len(text))
        for what, count in counts.most_common(MOST_COMMON)
    )


def _contexts(
    order_N: Tensor, token_N: Tensor, gate_N: Tensor, text: Sequence[str], S: int, draw: torch.Generator
) -> tuple[Context, ...]:
    """Drawn from the highest, the median and the lowest 20th of an expert's gates; within the window that was read."""
    result, part = [], max(1, len(order_N) // PART)
    for name, first in (("highest", 0), ("median", (len(order_N) - part) // 2), ("lowest", len(order_N) - part)):
        some_N = order_N[max(0, first) :][:part]
        for n in some_N[torch.randperm(len(some_N), generator=draw)[:SAMPLED]].tolist():
            t = int(token_N[n])
            begin, end = t - t % S, t - t % S + S
            before, after = text[max(begin, t - BEFORE) : t], text[t + 1 : min(end, t + 1 + AFTER)]
            result.append((name, float(gate_N[n]), ("".join(before), text[t], "".join(after))))
    return tuple(result)
