"""What a model loses with its experts: the table and the picture of `inspect --prune`."""

from collections.abc import Sequence

from switch_lm.inspection.study import Inspection
from switch_lm.inspection.tables import estimate
from switch_lm.pages.document import Cell, Part, Picture, Series
from switch_lm.pages.side_by_side import side_by_side
from switch_lm.probe.pruning import RULES

NOTE = (
    "As many experts are removed from each Switch layer: their router logits become minus infinity, so that a "
    "character goes to its next choice. First go those with the lowest load, or with the lowest mean of gate x output "
    "norm, on half of the windows; losses are those of the other half, in nats per character above the whole "
    "model's ({}). "
    "At random: the mean of all draws, in brackets the lowest and the highest; ± covers the windows. ± and * as above, "
    "corrected for {} comparisons."
)


def parts(inspections: Sequence[Inspection]) -> list[Part]:
    """None if nothing was pruned."""
    rows, series = list[list[tuple[Cell, ...]]](), list[Series]()
    for one in inspections if inspections[0].pruned else ():
        of_one: dict[int, list[Cell]] = {}
        for x in one.pruned:
            draws = f" ({min(x.draws):+.4f} to {max(x.draws):+.4f})" if len(x.draws) > 1 else ""
            of_one.setdefault(x.kept, []).append(estimate(x.cost, len(one.pruned), after=draws))
        rows.append([(Cell(str(kept)), *cells) for kept, cells in of_one.items()])
        for rule in RULES:
            points = [x for x in one.pruned if x.rule == rule]
            low, high = zip(*(x.cost.interval() or (x.cost.mean, x.cost.mean) for x in points), strict=True)
            kept, costs = tuple(float(x.kept) for x in points), tuple(x.cost.mean for x in points)
            series.append(Series(f"{one.letter}{rule}", kept, costs, low, high))
    if not rows:
        return []
    counts = " and ".join(dict.fromkeys(str(len(one.pruned)) for one in inspections))
    wholes = ", ".join(f"{one.letter}{one.pruned[0].loss:.4f}" for one in inspections if one.pruned)
    headings, note = ("experts kept", *RULES), NOTE.format(wholes, counts)
    alt = "What the loss rises by against the experts kept in each layer, a line for each way to remove them."
    axes = "experts kept in each Switch layer", "nats above the whole model"
    picture = Picture("pruned_0", "The loss with fewer experts", alt, *axes, tuple(series))
    return [side_by_side("What the loss rises by with fewer experts", headings, rows, note), picture]
