"""What a kind of device does well: rules by its type and generation, never by a stopwatch, which would change bits."""

import sys
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

# What a device is called in a message. MPS is experimental.
NAMES = {"cpu": "CPU", "cuda": "GPU", "mps": "MPS device (Apple silicon)"}
HOPPER = (9, 0)  # the compute capability on which torch multiplies groups in one kernel; elsewhere it loops on the host


# Torch raises a plain RuntimeError when the CPU's memory does not suffice.
NO_MEMORY = (
    "ALLOC_FAILED",
    "Invalid buffer size",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "Storage size calculation",
)
SMALLER = "make data.batch_size, model.context_length or the model smaller"


def is_usable(name: str) -> bool:
    """Whether torch can compute on such a device here: cpu, cuda or mps."""
    return why_not(name) is None


def why_not(name: str) -> str | None:
    """Why torch cannot compute on such a device here; empty if it sees none, None if it can."""
    if name == "cpu":
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's own words on old drivers and cards, of several lines
            if not {"cuda": torch.cuda, "mps": torch.backends.mps}[name].is_available():
                return ""
            try_out(name)
    except (RuntimeError, AssertionError) as error:  # such as a GPU that this torch has no kernels for, or a full one
        return str(error).partition("\n")[0]
    return None


def try_out(name: str) -> None:
    """RuntimeError if torch sees the device and cannot compute there."""
    ones = torch.ones(16, 16, device=name)
    float((ones @ ones).sum())


def refusal(name: str, *, key: str, fix: str) -> str | None:
    """Why the device that was asked for cannot be used, in one line; None if it can."""
    if (reason := why_not(name)) is None:
        return None
    return f"{key}: there is no usable {NAMES[name]} here{f' ({reason})' if reason else ''}; {fix}"


def chosen() -> str:
    """What `auto` stands for: a GPU if there is one. MPS, which is experimental, must be asked for.

    A line on stderr says why a GPU that torch sees is not used.
    """
    if (reason := why_not("cuda")) is None:
        return "cuda"
    if reason:
        print(
            f"warning: the GPU cannot be used ({reason}): computing on the CPU; free it or install a torch for it",
            file=sys.stderr,
        )
    return "cpu"


def no_memory(error: BaseException) -> str | None:
    """In words, that an allocation of Python, NumPy or torch failed; None if the error is another one."""
    of_torch = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    if not (of_torch or isinstance(error, MemoryError)):
        return None
    return f"memory ran out ({str(error).partition(chr(10))[0] or 'an allocation failed'})"


def is_cpu(device: torch.device) -> bool:
    """Whether to compute as on a CPU. Elsewhere steps are launched ahead of the device, and nothing reads from it."""
    return device.type == "cpu"


def in_full_precision(x: Tensor) -> bool:
    """Whether products of `x` run on a CPU, and not in bf16."""
    return is_cpu(x.device) and not torch.is_autocast_enabled("cpu") and x.dtype in (torch.float32, torch.float64)


def computes_plainly(x: Tensor) -> bool:
    """The same, in eager mode, where reading and writing between two operations costs time."""
    return in_full_precision(x) and not torch.compiler.is_compiling()


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
