"""The pictures of an inspection."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from switch_lm.inspection.ablation import WINDOWS
from switch_lm.inspection.history import Change
from switch_lm.inspection.matching import Pair
from switch_lm.inspection.study import Inspection
from switch_lm.pages.characters import visible
from switch_lm.pages.coloured_text import ColouredText, LayerText, the_busiest
from switch_lm.pages.document import Beside, HeatMap, Picture, Series
from switch_lm.pages.expert_maps import atlas, experts, layer_name, shown, stacked
from switch_lm.pages.heat_map import rounded_up
from switch_lm.pages.side_by_side import maps_beside
from switch_lm.stats.information import Explained


def coloured(one: Inspection, key: int) -> ColouredText:
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


def atlases(inspections: Sequence[Inspection], matches: Mapping[int, list[Pair]]) -> list[HeatMap | Beside]:
    """For each layer the share of a character's occurrences that each expert gets, or none does."""
    maps = [
        {number: _atlas(one, layer, key) for layer, number in enumerate(one.blocks)}
        for key, one in enumerate(inspections)
    ]
    result: list[HeatMap | Beside] = [] if matches else [*maps[0].values()]
    for number, pairs in matches.items():
        names = [(f"{a.expert:02d}", f"{b.expert:02d}") for a, b, _ in pairs if a and b]
        of_layer = [of_one[number] for of_one in maps if number in of_one]
        result.append(maps_beside(of_layer, names, f"atlas_difference_{number:02d}"))
    return result


def _atlas(one: Inspection, layer: int, key: int) -> HeatMap:
    characters, count_VE, number = one.vocabulary.characters, one.atlas.count_LVE[layer].double(), one.blocks[layer]
    count_V = count_VE.sum(dim=1)
    return atlas(
        (count_VE / count_V[:, None].clamp(min=1)).T,
        characters,
        shown(count_V, characters),
        load_E=count_VE.sum(dim=0)[: one.text.num_experts].tolist(),
        name=f"atlas_{key}_{number:02d}",
        title=f"{one.name}, {layer_name(number)}: which expert gets which character",
    )


def dropped_pictures(inspections: Sequence[Inspection]) -> list[Picture | HeatMap | Beside]:
    """By position and difficulty as lines, by character as a map; none if nothing was dropped."""
    known = [(one, one.drops) for one in inspections if one.drops is not None and one.drops.cost is not None]
    highest = max((drops.by_character_LV.nan_to_num(0.0).max().item() for _, drops in known), default=0.0)
    sixteenths = [adaptive_avg_pool1d(d.by_position_LS, min(16, len(d.by_position_LS.T))) for _, d in known]
    lines = {
        "position": ("sixteenth of the window, from its start", sixteenths),
        "difficulty": ("fifths of the tokens by loss, the easiest first", [d.by_difficulty_LQ for _, d in known]),
    }
    result: list[Picture | HeatMap | Beside] = [
        Picture(
            name=f"dropped_by_{what}_0",
            title=f"Who is dropped, by {what}",
            alt=f"The share of tokens that is dropped against {label}, a line for each layer.",
            x_label=label,
            y_label="share dropped",
            series=_lines(known, [(range(share_LN.shape[1]), share_LN) for share_LN in of_models]),
        )
        for what, (label, of_models) in lines.items()
        if known
    ]
    maps = []
    for key, (one, drops) in enumerate(known):
        characters = one.vocabulary.characters
        columns = shown(one.atlas.count_LVE[0].sum(dim=1), characters)
        maps.append(HeatMap(
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
            high=rounded_up(max(highest, 0.01)),
            in_bands=True,
        ))  # fmt: skip
    both = [(layer, layer) for layer in maps[0].y_names if layer in maps[-1].y_names] if maps else []
    return [*result, *([maps_beside(maps, both, "dropped_by_character_difference")] if maps else [])]


def _lines(
    known: Sequence[tuple[Inspection, object]], values: Sequence[tuple[Iterable[int], Tensor]]
) -> tuple[Series, ...]:
    """One line per layer of each model, on one scale."""
    return tuple(
        Series(f"{one.letter}{layer_name(number)}", tuple(map(float, x)), tuple(row))
        for (one, _), (x, value_LN) in zip(known, values, strict=True)
        for number, row in zip(one.blocks, value_LN.tolist(), strict=True)
    )


def router_picture(inspections: Sequence[Inspection]) -> Picture:
    """How often the chosen expert was the best, beside chance."""
    series, blocks = [], sorted({block for one in inspections for block in one.blocks})
    for one in inspections:
        held = one.counterfactual.held
        x = tuple(float(blocks.index(block)) for block in one.blocks)
        intervals = [interval for judged in held if (interval := judged.best.interval()) is not None]
        low_high = zip(*intervals, strict=True) if len(intervals) == len(held) else ()
        of = one.letter
        series.append(Series(f"{of}chosen expert", x, tuple(judged.best.mean for judged in held), *low_high))
        series.append(Series(f"{of}chance", x, tuple(judged.chance for judged in held)))
    return Picture(
        name="router_0",
        title="How often the chosen expert was the best",
        alt="For each layer the share of tokens whose chosen expert had the lowest loss, beside chance.",
        x_label="layer",
        y_label="share of tokens",
        series=tuple(series),
        x_names=tuple(map(layer_name, blocks)),
    )


def expert_maps(inspections: Sequence[Inspection]) -> list[Beside]:
    """What switching each expert off costs, and how alike any two are; on the same scales for all models."""
    costs = [abs(cost.mean) for one in inspections for layer in one.ablation.layers for cost in layer.off]
    pairs = [_expert_maps(one, key, rounded_up(max(0.01, *costs))) for key, one in enumerate(inspections)]
    return [Beside(maps) for maps in zip(*pairs, strict=True)]


def _expert_maps(one: Inspection, key: int, highest: float) -> tuple[HeatMap, HeatMap]:
    layers = one.ablation.layers
    off = tuple(tuple(cost.mean for cost in layer.off) for layer in layers)
    num_experts, some, same = one.text.num_experts, the_busiest(one.text.num_experts), [x.similarity for x in layers]
    names, rows = stacked([x.same_EE.tolist() for x in same], one.blocks, experts_L=[x.experts for x in same])
    columns = experts(num_experts) if not some else tuple(str(rank + 1) for rank in range(len(layers[0].off)))
    label = f"rank of the expert{some}" if some else "expert"
    return (
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
    )


def history_pictures(inspections: Sequence[Inspection]) -> list[Picture]:
    """What the character explains, and how many tokens will still change their expert, checkpoint by checkpoint."""
    known = [(one, one.history) for one in inspections if one.history is not None and len(one.history.steps) > 1]
    curves = {
        "specialisation": (
            "how much of the choice the character explains",
            "share of the choice's entropy",
            "character",
        ),
        "changes": ("tokens whose expert is not yet the last one", "share of tokens", "to_last"),
    }
    return [
        Picture(
            name=f"{what}_0",
            title=words,
            alt=f"{words} against the step of the checkpoint, a line for each layer.",
            x_label="training step",
            y_label=label,
            series=_lines(known, [(x.steps, _shares_LN(getattr(x, values))) for _, x in known]),
        )
        for what, (words, label, values) in curves.items()
        if known
    ]


def _shares_LN(layers: Iterable[Iterable[Explained | Change]]) -> Tensor:
    return torch.tensor([[one.share for one in of_layers] for of_layers in layers]).T
