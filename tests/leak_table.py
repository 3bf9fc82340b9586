"""What each routing rule lets a token depend on: the table that interventions and the certificate must agree with."""

from __future__ import annotations

from typing import Any, NamedTuple

from switch_lm.routers.options import BalanceOptions


class Verdict(NamedTuple):
    sees_its_future: bool
    depends_on_other_rows: bool


TIGHT: dict[str, Any] = {"capacity_factor": 0.75}
BY_ROW: dict[str, Any] = {"capacity_group": "sequence"}
TABLE: dict[str, tuple[dict[str, Any], Verdict]] = {
    "position, batch-major": (TIGHT, Verdict(False, True)),
    "position, by row": (TIGHT | BY_ROW, Verdict(False, False)),
    "two choices, token-major": (TIGHT | {"top_k": 2}, Verdict(False, True)),
    "two choices, token-major, by row": (TIGHT | BY_ROW | {"top_k": 2}, Verdict(False, False)),
    "random": (TIGHT | {"drop_order": "random"}, Verdict(True, True)),
    "random, by row": (TIGHT | BY_ROW | {"drop_order": "random"}, Verdict(True, False)),
    "probability": (TIGHT | {"drop_order": "probability"}, Verdict(True, True)),
    "probability, by row": (TIGHT | BY_ROW | {"drop_order": "probability"}, Verdict(True, False)),
    "reroute": (TIGHT | {"overflow": "reroute"}, Verdict(True, True)),
    "reroute, by row": (TIGHT | BY_ROW | {"overflow": "reroute"}, Verdict(True, False)),
    "two choices, choice-major": (TIGHT | {"top_k": 2, "queue_order": "choice"}, Verdict(True, True)),
    "two choices, choice-major, by row": (TIGHT | BY_ROW | {"top_k": 2, "queue_order": "choice"}, Verdict(True, False)),
    "sample, by position": (TIGHT | {"selection": "sample"}, Verdict(False, True)),
    "sample, by row": (TIGHT | BY_ROW | {"selection": "sample"}, Verdict(False, False)),
    "bias, by position": (TIGHT | {"balance": BalanceOptions("sign", rate=0.1)}, Verdict(False, True)),
    "bias, by row": (TIGHT | BY_ROW | {"balance": BalanceOptions("sign", rate=0.1)}, Verdict(False, False)),
    "passthrough, by position": (TIGHT | {"overflow": "passthrough"}, Verdict(False, True)),
    "dropless": ({"capacity_factor": None}, Verdict(False, False)),
    "dropless, random drops": ({"capacity_factor": None, "random_drop_rate": 0.3}, Verdict(False, False)),
    "random drops, by position": (TIGHT | {"random_drop_rate": 0.3}, Verdict(False, True)),
    "dropless, two sampled choices": (
        {"capacity_factor": None, "top_k": 2, "selection": "sample"},
        Verdict(False, False),
    ),
}
