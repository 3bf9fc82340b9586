"""The pictures of an inspection."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from switch_lm.inspection.ablation import WINDOWS
from switch_lm.inspection.study import Inspection
from switch_lm.pages.characters import visible
from switch_lm.pages.coloured_text import ColouredText, LayerText, the_busiest
from switch_lm.pages.document import HeatMap, Picture, Series
from switch_lm.pages.expert_maps import atlas, experts, layer_name, shown, stacked


def rounded_up(value: float) -> float:
    """To two figures, for the end of a scale."""
    size = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / size) * size:.2g}")


def coloured(one: Inspection, key: str) -> ColouredText:
    reading = one.text
    seconds = reading.second_LBS, reading.second_probability_LBS
    facts = reading.expert_LBS, reading.gate_LBS, *seconds, reading.number_LBS
    layers = [
        LayerText(layer_name(number), reading.num_experts, *(fact_BS.flatten().tolist() for fact_BS in of_layer))
        for number, *of_layer in zip(reading.blocks, *facts, strict=True)
    ]
    length, whole = reading.nll_BS.numel(), len(one.probe.split_ids) - 1
    text = one.vocabulary.decode(one.probe.split_ids[:length])
    part = "" if length == whole else f" (its first {length:,} of {whole:,} characters)"
    caption = (
        f"The validation text{part} as `{one.name}` routes it with nothing dropped. Choose a layer; point at a "
        "character, or move with the arrow keys, for its expert, gate and second choice."
    )
    return ColouredText(f"text-{key}", caption, text, tuple(layers))


def atlases(one: Inspection, key: str) -> list[HeatMap]:
    """For each layer the share of a character's occurrences that each expert gets, or none does."""
    characters, count_LVE = one.vocabulary.characters, one.atlas.count_LVE.double()
    count_V = count_LVE[0].sum(dim=1)
    share_LVE = count_LVE / count_V[:, None].clamp(min=1)
    return [
        atlas(
            share_VE.T,
            characters,
            shown(count_V, characters),
            load_E=count_VE.sum(dim=0)[: one.text.num_experts].tolist(),
            name=f"atlas_{key}_{number:02d}",
            title=f"{one.name}, {layer_name(number)}: which expert gets which character",
        )
        for number, share_VE, count_VE in zip(one.blocks, share_LVE, count_LVE, strict=True)
    ]


def dropped_pictures(one: Inspection, key: str) -> list[Picture | HeatMap]:
    """By position and difficulty as lines, by character as a map; none if nothing was dropped."""
    drops, characters = one.drops, one.vocabulary.characters
    if drops is None or drops.cost is None:
        return []
    columns = shown(one.atlas.count_LVE[0].sum(dim=1), characters)
    lines = {
        "position": ("position in the window", drops.by_position_LS),
        "difficulty": ("fifths of the tokens by loss, the easiest first", drops.by_difficulty_LQ),
    }
    return [
        *(
            Picture(
                name=f"dropped_by_{what}_{key}",
                title=f"{one.name}: who is dropped, by {what}",
                alt=f"The share of tokens that is dropped against {label}, a line for each layer.",
                x_label=label,
                y_label="share dropped",
                series=_lines(one, range(share_LN.shape[1]), share_LN),
            )
            for what, (label, share_LN) in lines.items()
        ),
        HeatMap(
            name=f"dropped_by_character_{key}",
            title=f"{one.name}: who is dropped, by character",
            alt="A row for each layer, a column for each character, as colour the share of it that is dropped.",
            x_label="character (\\n ends a line, ␣ is a space)",
            y_label="layer",
            value_label="share of a character's occurrences that is dropped",
            x_names=tuple(visible(characters[i]) for i in columns),
            y_names=tuple(map(layer_name, one.blocks)),
            values=tuple(map(tuple, drops.by_character_LV[:, columns].tolist())),
            low=0.0,
            high=rounded_up(max(drops.by_character_LV.nan_to_num(0.0).max().item(), 0.01)),
        ),
    ]


def _lines(one: Inspection, x: Iterable[int], value_LN: Tensor) -> tuple[Series, ...]:
    """One line per layer."""
    at = tuple(map(float, x))
    rows = zip(one.blocks, value_LN.tolist(), strict=True)
    return tuple(Series(layer_name(number), at, tuple(row)) for number, row in rows)


def router_picture(one: Inspection, key: str) -> Picture:
    """How often the chosen expert was the best, beside chance."""
    held = one.counterfactual.held
    x = tuple(float(n) for n in range(len(held)))
    intervals = [interval for judged in held if (interval := judged.best.interval()) is not None]
    low_high = zip(*intervals, strict=True) if len(intervals) == len(held) else ()
    return Picture(
        name=f"router_{key}",
        title=f"{one.name}: how often the chosen expert was the best",
        alt="For each layer the share of tokens whose chosen expert had the lowest loss, beside chance.",
        x_label="layer",
        y_label="share of tokens",
        series=(
            Series("chosen expert", x, tuple(judged.best.mean for judged in held), *low_high),
            Series("chance", x, tuple(judged.chance for judged in held)),
        ),
        x_names=tuple(map(layer_name, one.blocks)),
    )


def expert_maps(one: Inspection, key: str) -> list[HeatMap]:
    """What switching each expert off costs, and how alike any two are."""
    layers = one.ablation.layers
    off = tuple(tuple(cost.mean for cost in layer.off) for layer in layers)
    highest = rounded_up(max(0.01, *(abs(cost) for row in off for cost in row)))
    num_experts, some, same = one.text.num_experts, the_busiest(one.text.num_experts), [x.similarity for x in layers]
    names, rows = stacked([x.same_EE.tolist() for x in same], one.blocks, experts_L=[x.experts for x in same])
    columns = experts(num_experts) if not some else tuple(str(rank + 1) for rank in range(len(layers[0].off)))
    label = f"rank of the expert{some}" if some else "expert"
    return [
        HeatMap(
            name=f"switched_off_{key}",
            title=f"{one.name}: what it costs to switch an expert off",
            alt="A row for each layer, a column for each expert, as colour what the loss rises by without it.",
            x_label=label,
            y_label="layer",
            value_label=f"nats per character, on {WINDOWS} windows",
            x_names=columns,
            y_names=tuple(map(layer_name, one.blocks)),
            values=off,
            low=-highest,
            high=highest,
            centre=0.0,
        ),
        HeatMap(
            name=f"similarity_{key}",
            title=f"{one.name}: how alike the experts' outputs are",
            alt="For each layer a square of its experts, as colour the cosine of two experts' outputs for one token.",
            x_label=label,
            y_label=f"layer · expert{some}",
            value_label="mean cosine of two outputs for the same token; 1: the same",
            x_names=columns,
            y_names=names,
            values=rows,
            low=-1.0,
            high=1.0,
            centre=0.0,
        ),
    ]


def history_pictures(one: Inspection, key: str) -> list[Picture]:
    """What the character explains, and how many tokens will still change their expert, checkpoint by checkpoint."""
    history = one.history
    if history is None or len(history.steps) == 1:
        return []
    share_NL, change_NL = (
        torch.tensor([[x.share for x in layers] for layers in values])
        for values in (history.character, history.to_last)
    )
    curves = {
        "specialisation": ("how much of the choice the character explains", "share of the choice's entropy", share_NL),
        "changes": ("tokens whose expert is not yet the last one", "share of tokens", change_NL),
    }
    return [
        Picture(
            name=f"{what}_{key}",
            title=f"{one.name}: {words}",
            alt=f"{words} against the step of the checkpoint, a line for each layer.",
            x_label="training step",
            y_label=label,
            series=_lines(one, history.steps, value_NL.T),
        )
        for what, (words, label, value_NL) in curves.items()
    ]
