"""The files of an inspection: all are made before any is written, and each is replaced as a whole."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from switch_lm.inspection.contents import build
from switch_lm.inspection.drops import Drops
from switch_lm.inspection.experts_per_token import Group
from switch_lm.inspection.history import History
from switch_lm.inspection.study import Inspection
from switch_lm.pages.characters import visible
from switch_lm.pages.coloured_text import NONE
from switch_lm.pages.page import to_html
from switch_lm.pages.pictures import files_of
from switch_lm.stats.intervals import Estimate
from switch_lm.storage.files import as_csv, replacing

Row = dict[str, object]


def make(inspections: Sequence[Inspection], *, command: str) -> dict[str, bytes]:
    """The content of `pictures/*.png`, `tables/*.csv` and, last, of `inspect.html`, by path."""
    document = build(inspections, command=command)
    made = {name: png for picture in document.pictures for name, png in files_of(picture, svg=False).items()}
    files = {f"pictures/{name}": made[name] for name in sorted(made)}
    tables: dict[str, list[Row]] = {}
    for one in inspections:
        for name, rows in _rows(one).items():
            tables.setdefault(name, []).extend({"run": one.name} | row for row in rows)
    files |= {f"tables/{name}.csv": as_csv(rows).encode() for name, rows in tables.items() if rows}
    return files | {"inspect.html": to_html(document).encode()}


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Replaces the files, and removes pictures and tables of an earlier inspection; an OSError of the disk."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder / name) as file:
            file.write(content)
    for old in (*folder.glob("pictures/*.png"), *folder.glob("tables/*.csv")):
        if old.relative_to(folder).as_posix() not in files:
            old.unlink()


def _rows(one: Inspection) -> dict[str, list[Row]]:
    """The rows of each CSV file."""
    characters = [visible(character) for character in one.vocabulary.characters]
    choices = [*map(str, range(one.text.num_experts)), NONE]
    atlas: list[Row] = [
        {"layer": layer, "character": character, "expert": choices[expert], "count": count}
        for layer, count_VE in zip(one.blocks, one.atlas.count_LVE.tolist(), strict=True)
        for character, count_E in zip(characters, count_VE, strict=True)
        if any(count_E)  # those of the windows
        for expert, count in enumerate(count_E)
    ]
    explained: list[Row] = [
        {"layer": layer, "label": x.label, "given": x.given, "share": x.share, "chance": x.chance}
        | _estimate("beyond_chance", x.beyond, one.atlas.comparisons)
        for layer, of_layer in zip(one.blocks, one.atlas.explained, strict=True)
        for x in of_layer
    ]  # fmt: skip
    router: list[Row] = [
        {
            "layer": layer, "gate": x.gate, "best": x.best.mean, "best_by_chance": x.chance, "mean_rank": x.rank.mean,
            "best_gains": x.best_gains.mean,
        } | _estimate("gain_on_random", x.chosen_gains_on_random, one.counterfactual.comparisons)
        for layer, *pair in zip(one.blocks, one.counterfactual.held, one.counterfactual.own, strict=True)
        for x in pair
        if x.without < 1.0
    ]  # fmt: skip
    result = {"atlas": atlas, "explained": explained, "router": router, "experts": _experts(one)}
    result["assignments"] = _assignments(one, characters)
    if one.per_token is not None:
        result["experts_per_token"] = _per_token(one.per_token, one.blocks)
    if one.drops is not None:
        result["drops"] = _drops(one.drops, one.blocks, characters)
    result["pruning"] = [
        {"removed": x.rule, "kept": x.kept, "loss": x.loss + x.cost.mean}
        | _estimate("above_whole", x.cost, len(one.pruned))
        | {"lowest_draw": min(x.draws), "highest_draw": max(x.draws)}
        for x in one.pruned
    ]
    if one.history is not None:
        result["history"] = _history(one.history, one.blocks)
    return result


def _estimate(name: str, estimate: Estimate, comparisons: int) -> Row:
    """Its 95% interval, and whether it differs from 0 when corrected for so many comparisons."""
    low, high = estimate.interval() or (None, None)
    return {name: estimate.mean, "low": low, "high": high, "resolved": estimate.resolved(comparisons)}


def _assignments(one: Inspection, characters: Sequence[str]) -> list[Row]:
    """A row per assignment: in the order of the text, of a character's experts the one with the largest gate first."""
    ids_N, S = one.probe.ids_BS.flatten().tolist(), one.probe.ids_BS.shape[1]
    return [
        {
            "layer": layer, "window": place // S, "position": place % S, "character": characters[ids_N[place]],
            "expert": expert, "gate": f"{gate:.6g}",
        }
        for layer, of_layer in zip(one.blocks, one.assignments, strict=True)
        for place, expert, gate in of_layer
    ]  # fmt: skip


def _per_token(per_token: Sequence[Group], blocks: Sequence[int]) -> list[Row]:
    return [
        {"layer": layer, "by": one.by, "value": one.value, "tokens": one.count, "experts": x.mean, "without": none}
        for one in per_token
        for layer, (x, none) in zip(blocks, one.layers, strict=True)
    ]


def _experts(one: Inspection) -> list[Row]:
    rows: list[Row] = []
    for layer, changed in zip(one.blocks, one.ablation.layers, strict=True):
        numbers = changed.similarity.experts
        changes = {f"without {e}": cost for e, cost in zip(numbers, changed.off, strict=True)}
        changes |= {f"{i} and {j} swapped": cost for (i, j), cost in changed.swapped.items()}
        changes |= {"all averaged": changed.averaged, "layer off": changed.all_off}
        if one_off := changed.costliest:
            changes |= {f"without {one_off.expert}, which was chosen on the other windows": one_off.cost}
        rows += [
            {"layer": layer, "change": c} | _estimate("nats", x, one.ablation.comparisons) for c, x in changes.items()
        ]
        rows += [
            {"layer": layer, "change": f"cosine of {numbers[j]} and {numbers[i]}", "nats": cosine}
            for i, cosines in enumerate(changed.similarity.same_EE.tolist())
            for j, cosine in enumerate(cosines[:i])
        ]
    return rows


def _drops(drops: Drops, blocks: Sequence[int], characters: Sequence[str]) -> list[Row]:
    by = {"position": drops.by_position_LS, "row": drops.by_row_LR, "difficulty": drops.by_difficulty_LQ}
    return [
        {"layer": layer, "by": what, "value": characters[i] if what == "character" else i, "share_dropped": share}
        for what, share_LN in ({"character": drops.by_character_LV} | by).items()
        for layer, share_N in zip(blocks, share_LN.tolist(), strict=True)
        for i, share in enumerate(share_N)
        if not math.isnan(share)
    ]


def _history(history: History, blocks: Sequence[int]) -> list[Row]:
    return [
        {
            "step": step, "loss": history.loss[n], "layer": block, "character_explains": explained.share,
            "chance": explained.chance,
            "changed_since_before": history.since_before[n - 1][layer].share if n else None,
            "differs_from_last": history.to_last[n][layer].share,
        }
        for n, step in enumerate(history.steps)
        for layer, (block, explained) in enumerate(zip(blocks, history.character[n], strict=True))
    ]  # fmt: skip
