"""What a kind of device does well: rules by its type and generation, never by a stopwatch, which would change bits."""

import torch
from torch.nn import functional as F

HOPPER = (9, 0)  # the compute capability on which torch multiplies groups in one kernel; elsewhere it loops on the host


def is_cpu(device: torch.device) -> bool:
    """Whether to compute as suits a CPU. Elsewhere a step is launched ahead of the device, and nothing reads from it."""
    return device.type == "cpu"


def multiplies_groups(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch.nn.functional.grouped_mm` is one kernel there, without a read of the offsets."""
    if device.type != "cuda" or dtype != torch.bfloat16 or not hasattr(F, "grouped_mm"):
        return False
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor) == HOPPER and torch.version.hip is None


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type of sums over many batches: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64
