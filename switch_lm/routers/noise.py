"""Training noise. A CPU draws random numbers one by one, so each 64-bit draw serves 8 elements here."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def seed_noise(seed: int, device: torch.device) -> None:
    """Seeds the global random state of the CPU and of `device`.

    `torch.manual_seed` does so for every kind of accelerator too: where there is none that takes as long as a pass over
    a few characters, and torch keeps each call forever.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def random_bytes(like: Tensor) -> Tensor:
    """Independent, uniform bytes (uint8) in the shape and on the device of `like`, from torch's global random state."""
    if like.device.type == "mps":  # which draws integers of 32 bits only, however wide their type is
        return torch.randint(256, like.shape, dtype=torch.int32, device=like.device).to(torch.uint8)
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-like.numel() // 8),), device=like.device)
    return draws.view(torch.uint8)[: like.numel()].view(like.shape)


def jitter(x_TD: Tensor, epsilon: float) -> Tensor:
    """The router's input (T, D) times U(1 - epsilon, 1 + epsilon), in 256 even steps.

    The result is a copy, so that the experts get the input without noise. Source: Switch Transformers, appendix C.
    """
    return x_TD * ((random_bytes(x_TD).to(x_TD.dtype) - 127.5) * (epsilon / 127.5) + 1.0)


class Dropout(nn.Module):
    """Zeroes a share `rate` of the elements in training and scales up the others, so that the mean does not change.

    It costs a fraction of `nn.Dropout` on a CPU: a call zeroes one of the two multiples of 1/256 next to `rate`, chosen
    at random so that the expected share is `rate`. Input and output have the same shape.
    Source: Srivastava et al. 2014.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        return x * _survivors(x.detach(), self.rate) * (1.0 / (1.0 - self.rate))


@torch.library.custom_op("switch_lm::survivors", mutates_args=())
def _survivors(like: Tensor, rate: float) -> Tensor:
    """1 (kept) or 0, in the shape of `like`. Opaque to the compiler, whose own loops are several times slower."""
    zeroed = (256 * rate + torch.rand((), device=like.device)).floor().clamp(max=255)  # of a byte's 256 values
    return (random_bytes(like) >= zeroed.to(torch.uint8)).to(torch.bfloat16)


@_survivors.register_fake
def _(like: Tensor, rate: float) -> Tensor:
    return torch.empty_like(like, dtype=torch.bfloat16)
