"""The few figures that a page opens with, each large, with what it is above it and what it means below."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One figure; `code` in backquotes is the only markup of its note."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """Side by side on a screen, below each other on a phone."""

    items: tuple[Tile, ...]
