"""What is known of each expert, a card each: a part of a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """An expert, or what differs between two; `colour` is that of an expert in coloured text."""

    name: str
    line: str  # what it is, in a few words
    facts: tuple[tuple[str, str], ...]
    common: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = ()  # kind: what, its share, its share by chance
    contexts: tuple[tuple[str, str, str, str], ...] = ()  # about its gate; before, character, after
    colour: int | None = None


@dataclass(frozen=True)
class ExpertCards:
    """Rows of cards below the name of each layer; with several cards in a row they stand side by side."""

    caption: str
    layers: tuple[tuple[str, tuple[tuple[Card, ...], ...]], ...]

    @property
    def several(self) -> bool:
        """Whether rows have several cards."""
        return any(len(row) > 1 for _, rows in self.layers for row in rows)


def percent(share: float) -> str:
    """With one digit below 1%."""
    return f"{share:.1%}" if 0.0 < share < 0.01 else f"{share:.0%}"
