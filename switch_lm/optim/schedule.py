"""Learning rate schedules: the factor of the configured learning rate at each step."""

import math

from switch_lm.optim.options import OptimOptions


def learning_rate_factor(step: int, optim: OptimOptions, *, max_steps: int, d_model: int) -> float:
    """The factor at `step`, counted from 0.

    linear, cosine: a linear rise to 1 over `warmup_steps`, then a straight line or half a cosine to `min_factor` at the
    last step. noam: d_model^-0.5 x min(n^-0.5, n x warmup^-1.5), n counted from 1 (Vaswani et al., 2017, eq. 3).
    """
    number, warmup = step + 1, max(1, optim.warmup_steps)
    if optim.schedule == "noam":
        return float(d_model**-0.5 * min(number**-0.5, number * warmup**-1.5))
    rise = min(1.0, number / warmup)
    done = min(1.0, max(0.0, (step - optim.warmup_steps) / max(1, max_steps - 1 - optim.warmup_steps)))
    if optim.schedule == "linear":
        return rise * (1 + (optim.min_factor - 1) * done)
    return rise * (optim.min_factor + (1 - optim.min_factor) * 0.5 * (1 + math.cos(math.pi * done)))
