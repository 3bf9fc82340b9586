"""The options of what keeps the experts' loads even, as plain data. No torch."""

from dataclasses import dataclass

from switch_lm.config.keys import BELOW_ONE, Rule, key, one_of


@dataclass
class BalanceOptions:
    """What keeps the experts' loads even."""

    name: str = key(
        "loss",
        "loss (alpha x the balance loss: paper, eq. 4), sign (a bias on the selection, moved after each step: "
        "DeepSeek-V3, section 2.1.2), quantile (the bias that evens the step's loads: Kimi K3, section 2.3.3) or none. "
        "Only with loss is the balance loss part of the total; otherwise it is only logged.",
        one_of("loss", "sign", "quantile", "none"),
    )
    rate: float = key(
        0.001,
        "With balance=sign: how far each expert's bias moves after a step.",
        Rule("must be above 0 and at most 1", lambda value: 0 < value <= 1),
    )
    ema: float = key(0.0, "With balance=quantile: how much of the old bias is kept after each step.", BELOW_ONE)

    @property
    def adds_loss(self) -> bool:
        """Whether alpha x the balance loss is part of the total."""
        return self.name == "loss"

    @property
    def moves_bias(self) -> bool:
        """Whether a bias on the selection does it."""
        return self.name in ("sign", "quantile")
