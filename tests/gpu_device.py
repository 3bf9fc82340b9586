"""The device of the tests marked `gpu`: a GPU, or for a dry run the one that SWITCH_LM_TEST_DEVICE names."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

NAME = os.environ.get("SWITCH_LM_TEST_DEVICE", "cuda")
DEVICE = torch.device(NAME)
IS_GPU = NAME == "cuda"
FLOAT32 = 1e-4  # the two devices add up in another order: some roundings of 6e-8, through some layers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = IS_GPU and not torch.cuda.is_available()
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))  # such as that sync debugging is a prototype
            if missing:
                item.add_marker(pytest.mark.skip(reason="no GPU that torch can use is here"))


def far(here: Tensor, there: Tensor) -> float:
    """The largest difference as a share of the largest value of `there`; NaN if one holds a NaN."""
    return float((here.detach().cpu().double() - there.detach().cpu().double()).abs().max()) / max(
        float(there.detach().abs().max()), 1e-20
    )
