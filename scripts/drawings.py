"""The drawings of docs/glossary.md, a Switch block and capacity: `python scripts/drawings.py [FOLDER]`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from switch_lm.pages.plots import COLOURS
from switch_lm.routers.queueing import queue_slots

FOLDER = Path("docs")
INK, PAPER, GREY, LOST = "#1f2430", "#ffffff", "#eef0f4", "#b3261e"
TOKENS = ("R", "O", "M", "E", "O")
PROBS_TE = (
    (0.7, 0.1, 0.1, 0.1),
    (0.8, 0.1, 0.0, 0.1),
    (0.6, 0.1, 0.1, 0.2),
    (0.5, 0.2, 0.1, 0.2),
    (0.1, 0.1, 0.7, 0.1),
)
FACTOR = 1.0


def drawing(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty one; a unit is a centimetre on a screen."""
    figure = Figure(figsize=(width / 2.54, height / 2.54), facecolor=PAPER)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, **how: str) -> None:
    """With its lower left corner at (x, y)."""
    style = {"facecolor": GREY, "edgecolor": INK, "linestyle": "-"} | how
    colour = style.pop("color", INK)
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.15", **style))  # type: ignore[arg-type]
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=colour, fontsize=10)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, line: str = "-") -> None:
    shape = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=11, color=color, linestyle=line, shrinkA=0, shrinkB=0
    )
    axes.add_patch(shape)


def note(axes: Axes, x: float, y: float, text: str, **how: object) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "color": INK, "fontsize": 10} | how)  # type: ignore[arg-type]


def switch_block() -> Figure:
    """One token on its way through a block whose feed-forward layer is split into four experts."""
    figure, axes = drawing(16.0, 12.4)
    note(axes, 3.0, 0.5, "a token")
    arrow(axes, (3.0, 0.8), (3.0, 1.6))
    box(axes, 1.1, 1.6, 3.8, 1.0, "norm, attention")
    arrow(axes, (3.0, 2.6), (3.0, 3.3))
    box(axes, 2.65, 3.3, 0.7, 0.7, "+")
    axes.plot([3.0, 0.5, 0.5], [1.1, 1.1, 3.65], color=INK, lw=1.2)
    arrow(axes, (0.5, 3.65), (2.65, 3.65))
    note(axes, 0.75, 2.4, "residual", rotation=90, fontsize=9)
    arrow(axes, (3.0, 4.0), (3.0, 5.0))
    box(axes, 2.2, 5.0, 1.6, 0.8, "norm")
    arrow(axes, (3.8, 5.4), (6.0, 5.4))
    box(axes, 6.0, 4.9, 2.2, 1.0, "router", facecolor="#ffffff")
    note(axes, 12.0, 4.7, "a probability for each expert:\n0.10, 0.70, 0.15, 0.05", fontsize=9)
    arrow(axes, (8.2, 5.4), (9.3, 5.4))
    for expert, share in enumerate((0.10, 0.70, 0.15, 0.05)):
        left, chosen = 4.8 + 2.7 * expert, expert == 1
        axes.add_patch(
            FancyBboxPatch(
                (9.6 + 1.2 * expert, 5.3),
                0.6,
                1.6 * share,
                boxstyle="square,pad=0",
                facecolor=COLOURS[expert],
                edgecolor="none",
            )
        )
        how = {"facecolor": COLOURS[expert], "color": "#ffffff"} if chosen else {"linestyle": "--"}
        box(axes, left, 8.0, 2.3, 1.1, f"expert {expert}", **how)
    axes.plot([7.1, 7.1, 8.65], [5.9, 7.0, 7.0], color=COLOURS[1], lw=1.2)
    arrow(axes, (8.65, 7.0), (8.65, 8.0), COLOURS[1])
    note(axes, 6.8, 6.6, "to the most\nprobable one", ha="right", fontsize=9)
    arrow(axes, (8.65, 9.1), (8.65, 10.0), COLOURS[1])
    box(axes, 7.75, 10.0, 1.8, 0.8, "x 0.70", facecolor="#ffffff")
    note(axes, 9.8, 10.4, "the gate: its probability", ha="left", fontsize=9)
    axes.plot([8.65, 8.65], [10.8, 11.4], color=INK, lw=1.2)
    arrow(axes, (8.65, 11.4), (3.35, 11.4))
    box(axes, 2.65, 11.05, 0.7, 0.7, "+")
    axes.plot([3.0, 1.2, 1.2], [4.5, 4.5, 11.4], color=INK, lw=1.2)
    arrow(axes, (1.2, 11.4), (2.65, 11.4))
    note(axes, 0.9, 8.0, "residual", rotation=90, fontsize=9)
    return figure


def capacity() -> Figure:
    """Five tokens, as the router of this package queues them: what each expert has room for, and what is dropped."""
    probs_TE = torch.tensor(PROBS_TE)
    num_tokens, num_experts = probs_TE.shape
    slots = min(num_tokens, max(1, math.ceil(FACTOR * num_tokens / num_experts)))
    expert_T = probs_TE.argmax(dim=1)
    queue = queue_slots(expert_T[None], num_experts)
    figure, axes = drawing(17.0, 9.6)
    words = "dropped: nothing is\ncomputed for these two;\nthe residual carries them"
    note(axes, 8.2, 4.8, words, color=LOST, fontsize=9)
    note(
        axes,
        8.5,
        9.1,
        f"capacity = ceil({FACTOR:g} x {num_tokens} tokens / {num_experts} experts) = {slots} slots each",
        fontsize=11,
    )
    for expert in range(num_experts):
        left = 1.4 + 3.9 * expert
        for slot in range(slots):
            box(axes, left + 1.35 * slot, 1.9, 1.2, 1.0, "", facecolor="#ffffff", edgecolor=COLOURS[expert])
        load = int(queue.load_GE[0, expert])
        note(axes, left + 1.28, 1.4, f"expert {expert}: load {load}", color=COLOURS[expert], fontweight="bold")
        used = min(load, slots)
        note(
            axes,
            left + 1.28,
            0.65,
            f"{used} kept, {load - used} dropped,\n{slots - used} of {slots} slots empty",
            fontsize=9,
        )
    for token, (expert, slot) in enumerate(zip(expert_T.tolist(), queue.slot_GN[0].tolist(), strict=True)):
        left, kept = 1.2 + 3.3 * token, slot < slots
        box(axes, left, 7.2, 1.2, 1.0, TOKENS[token])
        note(axes, left + 0.6, 8.5, f"token {token}", fontsize=9)
        if kept:
            arrow(axes, (left + 0.6, 7.2), (2.0 + 3.9 * expert + 1.35 * slot, 2.9), COLOURS[expert])
            note(axes, 2.0 + 3.9 * expert + 1.35 * slot, 2.4, TOKENS[token])
        else:
            arrow(axes, (left + 0.6, 7.2), (left + 0.6, 6.5), LOST, "--")
            note(axes, left + 0.6, 6.0, f"expert {expert}\nis full", color=LOST, fontsize=9)
    return figure


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "switch_lm", "font.family": "sans-serif"}):
        for name, figure in {"switch_block": switch_block(), "capacity": capacity()}.items():
            about = {"Date": None, "Creator": None, "Title": name.replace("_", " ")}
            figure.savefig(folder / f"{name}.svg", metadata=about)


if __name__ == "__main__":
    main()
