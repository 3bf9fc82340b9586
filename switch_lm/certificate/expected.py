"""What each routing rule should do: whether it sees a token's own future, and whether it depends on other rows.

Whether a choice is dropped shows in the output, so both depend on who gets a place at a full expert.
tests/test_causality finds the same by intervention on random models.
"""

from __future__ import annotations

from switch_lm.routers.options import RoutingRule


def sees_future(rule: RoutingRule, *, limited: bool, training: bool) -> bool:
    """Whether later tokens of its row can move a token. `limited`: places are; random order is of training alone."""
    out_of_order = rule.drop_order == "probability" or (rule.drop_order == "random" and training)
    later_choices_first = rule.top_k >= 2 and rule.queue_order == "choice"
    return limited and (out_of_order or later_choices_first or rule.overflow == "reroute")


def depends_on_rows(rule: RoutingRule, *, limited: bool) -> bool:
    """Whether other rows of the batch can move a token."""
    return limited and rule.capacity_group == "batch"
