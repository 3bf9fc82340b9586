"""Learning rate schedules: the factor of the configured learning rate at each step."""

import math
from typing import Any

from switch_lm.config.legs import Leg, read_legs
from switch_lm.optim.options import OptimOptions

SHORT = 10  # a leg warms up again in one of so many of its steps, and in warmup_steps at most


def learning_rate_factor(step: int, optim: OptimOptions, *, max_steps: int, d_model: int) -> float:
    """The factor at `step`, counted from 0.

    linear, cosine: a linear rise to 1 over `warmup_steps`, then a straight line or half a cosine to `min_factor` at the
    last step. noam: d_model^-0.5 x min(n^-0.5, n x warmup^-1.5), n counted from 1 (Vaswani et al., 2017, eq. 3).

    A later leg begins at the factor f of the last step before it. rewarm: the rise from f to 1 takes w steps, the
    smaller of `warmup_steps` and a tenth of the leg; then the line or cosine to `min_factor` over the steps that are
    left. decay: the line or cosine from f to `min_factor`, or f if that is lower. noam has no end, and goes on.
    """
    if optim.schedule == "noam":
        number = step + 1
        return float(d_model**-0.5 * min(number**-0.5, number * max(1, optim.warmup_steps) ** -1.5))
    leg, first, _, goal = [span for span in spans(optim, max_steps) if span[1] <= step][-1]
    before = 0.0 if leg is None else learning_rate_factor(first - 1, optim, max_steps=max_steps, d_model=d_model)
    return _in_leg(step - first, optim, how=leg and leg.how, steps=goal - first, start=before)


def _in_leg(done: int, optim: OptimOptions, *, how: str | None, steps: int, start: float) -> float:
    """After `done` steps of a leg of so many, which began at `start`."""
    if how == "decay":
        floor = min(optim.min_factor, start)
        return floor + (start - floor) * _shape(min(1.0, (done + 1) / steps), optim.schedule)
    warmup = optim.warmup_steps if how is None else warmup_of_leg(optim, steps)
    rise = start + (1 - start) * min(1.0, (done + 1) / max(1, warmup))
    share = min(1.0, max(0.0, (done - warmup) / max(1, steps - 1 - warmup)))
    if optim.schedule == "linear":
        return rise * (1 + (optim.min_factor - 1) * share)
    return rise * (optim.min_factor + (1 - optim.min_factor) * _shape(share, optim.schedule))


def _shape(share: float, schedule: str) -> float:
    return 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))


def warmup_of_leg(optim: OptimOptions, steps: int) -> int:
    """In which a later leg of so many steps rises to 1 again."""
    return min(optim.warmup_steps, math.ceil(steps / SHORT))


def spans(optim: OptimOptions, max_steps: int) -> list[tuple[Leg | None, int, int, int]]:
    """Each leg, the first and the last step in it, counted from 0, and how many steps its schedule ends after."""
    legs = read_legs(optim.legs)
    firsts, goals = [0, *(leg.after for leg in legs)], [*(leg.of for leg in legs), max_steps]
    lasts = [*(leg.after - 1 for leg in legs), max_steps - 1]
    return list(zip([None, *legs], firsts, lasts, goals, strict=True))


def legs_in_words(optim: OptimOptions, *, max_steps: int, d_model: int) -> list[dict[str, Any]]:
    """As in result.json: `first_step`, `last_step`, counted from 1, and `schedule`, the leg's own in words."""
    return [
        {"first_step": first + 1, "last_step": last + 1,
         "schedule": _in_words(leg, first, goal, optim, max_steps=max_steps, d_model=d_model)}
        for leg, first, last, goal in spans(optim, max_steps)
    ]  # fmt: skip


def _in_words(leg: Leg | None, first: int, goal: int, optim: OptimOptions, **run: int) -> str:
    if optim.schedule == "noam":
        return "noam" if leg is None else "noam goes on"
    end, warmup = f"{optim.schedule} to {optim.min_factor:g} x lr at step {goal}", optim.warmup_steps
    if leg is None:
        return f"from 0 to lr in {warmup} steps, then {end}"
    start = learning_rate_factor(first - 1, optim, **run)
    if leg.how == "rewarm":
        rise = warmup_of_leg(optim, goal - first)
        return f"rewarm: from {start:.3g} to 1 x lr in {rise} step{'s' * (rise != 1)}, then {end}"
    return f"decay: from {start:.3g} x lr {optim.schedule} to {min(start, optim.min_factor):.3g} x lr at step {goal}"


def nothing_to_learn(optim: OptimOptions, *, max_steps: int, d_model: int) -> str | None:
    """Why the last leg would change nothing; None if it would."""
    *_, (leg, first, _, _) = spans(optim, max_steps)
    if leg is None or leg.how != "decay" or optim.schedule == "noam":
        return None
    if learning_rate_factor(first - 1, optim, max_steps=max_steps, d_model=d_model) > 0:
        return None
    rule = f"the learning rate has reached 0 at step {first}, so nothing would be learnt"
    return f"optim.on_resume=decay: {rule}; leave it out, to warm up again"
