"""Causal self-attention with rotary positions and a key-value cache."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from switch_lm.model import devices

ROTARY_BASE = 10_000.0  # RoFormer (Su et al., 2021)


class LayerCache:
    """Keys and values of the `length` positions that one layer has read, in buffers of `max_length` positions."""

    def __init__(self, max_length: int) -> None:
        self.length, self.max_length = 0, max_length
        self._kept: tuple[Tensor, Tensor] | None = None

    def append(self, key_BHSW: Tensor, value_BHSW: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values (B, H, S, W) of S new positions at the end; returns those of all positions so far."""
        if self._kept is None:
            B, H, _, W = key_BHSW.shape
            self._kept = key_BHSW.new_empty(B, H, self.max_length, W), value_BHSW.new_empty(B, H, self.max_length, W)
        start, self.length = self.length, self.length + key_BHSW.shape[2]
        keys_BHSW, values_BHSW = (kept[:, :, : self.length] for kept in self._kept)
        keys_BHSW[:, :, start:], values_BHSW[:, :, start:] = key_BHSW, value_BHSW
        return keys_BHSW, values_BHSW


def rotary_table(num_positions: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (S, W/2), float32, of each pair's angle at each position (RoFormer, section 3.2.2)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, width, 2).float() / width)
    angle = torch.arange(num_positions).float()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BHSW: Tensor, cos_SW: Tensor, sin_SW: Tensor) -> Tensor:
    """Rotates each pair (i, i + W/2) by the angle of its position (RoFormer, eq. 34); pairs as in GPT-NeoX."""
    cos_SW, sin_SW = cos_SW.to(x_BHSW.dtype), sin_SW.to(x_BHSW.dtype)
    if devices.computes_plainly(x_BHSW):
        y_BHSW: Tensor = _Rotation.apply(x_BHSW, cos_SW, sin_SW)  # type: ignore[no-untyped-call]
        return y_BHSW
    a, b = x_BHSW.chunk(2, dim=-1)
    return torch.cat([a * cos_SW - b * sin_SW, a * sin_SW + b * cos_SW], dim=-1)


class _Rotation(torch.autograd.Function):
    """Its gradient is the rotation back: nothing is kept, and half as much is read and written as by autograd."""

    @staticmethod
    def forward(ctx: Any, x_BHSW: Tensor, cos_SW: Tensor, sin_SW: Tensor) -> Tensor:
        ctx.save_for_backward(cos_SW, sin_SW)
        return _rotated(x_BHSW, cos_SW, sin_SW)

    @staticmethod
    def backward(ctx: Any, grad_BHSW: Tensor) -> tuple[Tensor, None, None]:
        cos_SW, sin_SW = ctx.saved_tensors
        return _rotated(grad_BHSW, cos_SW, -sin_SW), None, None


def _rotated(x_BHSW: Tensor, cos_SW: Tensor, sin_SW: Tensor) -> Tensor:
    a, b = x_BHSW.chunk(2, dim=-1)
    y_BHSW = x_BHSW * torch.cat([cos_SW, cos_SW], dim=-1)
    left, right = y_BHSW.chunk(2, dim=-1)
    left.addcmul_(b, sin_SW, value=-1)
    right.addcmul_(a, sin_SW)
    return y_BHSW


def causal_attention(q_BHSW: Tensor, k_BHSW: Tensor, v_BHSW: Tensor) -> Tensor:
    """softmax(q k' / sqrt(W)) v (B, H, S, W), masked so that no query sees a later key; the last ones are aligned.

    On a CPU the products are written out in bf16 and in compiled code: the backward pass of the fused kernel is
    several times slower in bf16, and a compiled softmax is as fast.
    Source: Vaswani et al., 2017, eq. 1.
    """
    num_queries, num_keys = q_BHSW.shape[2], k_BHSW.shape[2]
    fused = not devices.is_cpu(q_BHSW.device) or devices.computes_plainly(q_BHSW)
    if fused and num_queries == num_keys > 1:
        return F.scaled_dot_product_attention(q_BHSW, k_BHSW, v_BHSW, is_causal=True)
    score_BHSS = (q_BHSW * q_BHSW.shape[-1] ** -0.5) @ k_BHSW.transpose(-2, -1)
    if num_queries == 1:
        return score_BHSS.softmax(dim=-1).to(v_BHSW.dtype) @ v_BHSW
    future_SS = torch.full((num_queries, num_keys), float("-inf"), device=q_BHSW.device, dtype=score_BHSS.dtype)
    return (score_BHSS + future_SS.triu(num_keys - num_queries + 1)).softmax(dim=-1).to(v_BHSW.dtype) @ v_BHSW


class Attention(nn.Module):
    """Multi-head causal self-attention without bias (Vaswani et al., 2017, section 3.2.2), with rotary positions."""

    def __init__(self, *, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x_BSD: Tensor, *, rotation: tuple[Tensor, Tensor] | None, cache: LayerCache | None = None
    ) -> Tensor:
        """Output (B, S, D). `rotation`: cosines and sines (S, W/2) of these positions, or None to rotate nothing."""
        B, S, D = x_BSD.shape
        qkv = self.qkv(x_BSD).view(B, S, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # three of (B, H, S, W)
        if devices.computes_plainly(x_BSD):  # the three gradients are then joined in one copy
            q, k, v = qkv.unbind()
            q, k = (q, k) if rotation is None else (rotate(q, *rotation), rotate(k, *rotation))
        else:
            q, k = qkv[:2] if rotation is None else rotate(qkv[:2], *rotation)
            v = qkv[2]
        if cache is not None:
            k, v = cache.append(k, v)
        return self.out(causal_attention(q, k, v).transpose(1, 2).reshape(B, S, D))
