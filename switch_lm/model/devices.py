"""What a kind of device does well: rules by its type and generation, never by a stopwatch, which would change bits."""

import torch
from torch import Tensor
from torch.nn import functional as F

# What a device is called in a message. MPS is experimental.
NAMES = {"cpu": "CPU", "cuda": "GPU", "mps": "MPS device (Apple silicon)"}
HOPPER = (9, 0)  # the compute capability on which torch multiplies groups in one kernel; elsewhere it loops on the host


def is_usable(name: str) -> bool:
    """Whether torch can use such a device here: cpu, cuda or mps."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return there.get(name, False)


def chosen() -> str:
    """What `auto` stands for: a GPU if there is one. MPS, which is experimental, must be asked for."""
    return "cuda" if is_usable("cuda") else "cpu"


def is_cpu(device: torch.device) -> bool:
    """Whether to compute as on a CPU. Elsewhere steps are launched ahead of the device, and nothing reads from it."""
    return device.type == "cpu"


def multiplies_groups(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch.nn.functional.grouped_mm` is one kernel there, without a read of the offsets."""
    if device.type != "cuda" or dtype != torch.bfloat16 or not hasattr(F, "grouped_mm"):
        return False
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor) == HOPPER and torch.version.hip is None


def multiplies_into_float32(device: torch.device) -> bool:
    """Whether a batched product of bf16 matrices can be written in float32 there."""
    return device.type == "cuda" and torch.version.hip is None


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type of sums over many batches: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(x: Tensor) -> Tensor:
    """A tensor in the type of sums over many batches; it stays on its device."""
    return x.to(sum_dtype(x.device))
