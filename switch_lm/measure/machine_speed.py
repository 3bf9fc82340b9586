"""How fast this machine multiplies matrices, which the speed of training is compared with."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

SIDE = 2048
PRODUCT = 2.0 * SIDE**3  # FLOPs
CALLS, MOST_SECONDS = 5, 1.0


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP per second of the CPU's product of two matrices of 2048 x 2048, with as many threads as torch has now.

    The median of five calls, or of as many as a second allows, after one to warm up. torch's random state stays.
    """
    multiply, seconds = matmul(dtype), list[float]()
    multiply()
    while len(seconds) < CALLS and sum(seconds) < MOST_SECONDS:
        started = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - started)
    return PRODUCT / statistics.median(seconds)


def matmul(dtype: torch.dtype) -> Callable[[], Tensor]:
    """One such product, into the same memory at each call."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)
