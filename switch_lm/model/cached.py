"""Feed-forwards on a CPU, piece by piece: what lies between the two matrices stays in the processor's cache.

Hardly any empty rows are multiplied. Without pieces, the hidden layer of all tokens, tens of megabytes, is read and
written for each step of an activation and its gradient: that took a fifth of a float32 training step. Threads share one
small product badly, so experts with few rows are multiplied side by side, padded to the longest of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CACHE_BYTES = 2**20  # per thread: how much of a core's cache the hidden layer of a piece may fill
LEAST_ROWS = 512  # per thread: the limit of a piece's rows is at least this, since each piece reads the matrices again
MOST_PADDING = 64  # empty rows that an expert gets at most, to be multiplied beside others


class Piece(NamedTuple):
    """`rows` of each of experts `first` .. `last` - 1, from their row `skipped` on; as hidden rows from `start` on."""

    first: int
    last: int
    rows: int
    skipped: int
    start: int

    @property
    def experts(self) -> slice:
        return slice(self.first, self.last)

    @property
    def hidden(self) -> slice:
        return slice(self.start, self.start + (self.last - self.first) * self.rows)


def pieces(loads: Sequence[int], *, most_rows: int, side_by_side: bool) -> list[Piece]:
    """Cuts the rows of experts into pieces of at most `most_rows`: several experts with few, or parts of one."""
    done: list[Piece] = []
    first = start = 0
    while first < len(loads):
        last, least, most = first + 1, loads[first], loads[first]
        while side_by_side and last < len(loads):
            lower, higher = min(least, loads[last]), max(most, loads[last])
            if higher - lower > MOST_PADDING or (last + 1 - first) * higher > most_rows:
                break
            last, least, most = last + 1, lower, higher
        parts = -(-most // most_rows)
        for part in range(parts):
            skipped, end = most * part // parts, most * (part + 1) // parts
            done.append(Piece(first, last, end - skipped, skipped, start))
            start = done[-1].hidden.stop
        first = last
    return done


def _relu_backward(grad: Tensor, positive: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(grad, positive, 0, grad_input=grad)


@dataclass(frozen=True)
class _Activation:
    """What is kept of the product (in its place), the activation of that, and the product's gradient (in place)."""

    keep: Callable[[Tensor], Tensor]
    apply: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


_ACTIVATIONS = {
    "relu": _Activation(torch.relu_, lambda positive: positive, _relu_backward),
    "relu_squared": _Activation(torch.relu_, torch.square, lambda grad, positive: grad.mul_(positive).mul_(2.0)),
    "gelu": _Activation(lambda product: product, F.gelu, torch.ops.aten.gelu_backward),
}


class _Rows:
    """The pieces of a call, and which row of the input (N, D) each of their rows holds."""

    def __init__(self, x_ND: Tensor, width: int, choice_N: Tensor | None, end_E: Tensor, threads: int) -> None:
        self.number, self.choice_N = x_ND.shape[0], choice_N
        ends = end_E.tolist()
        self.loads = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        self.starts = [end - load for load, end in zip(self.loads, ends, strict=True)]
        most = threads * max(LEAST_ROWS, CACHE_BYTES // (width * x_ND.element_size()))
        self.pieces = pieces(self.loads, most_rows=most, side_by_side=threads > 1)
        self.number_of_hidden = self.pieces[-1].hidden.stop if self.pieces else 0
        self.largest = max((piece.hidden.stop - piece.hidden.start for piece in self.pieces), default=0)
        self.leave_out = ends[-1] < self.number

    def source(self, piece: Piece) -> slice | Tensor:
        """The input's rows of a piece, N for an empty one."""
        loads, first = self.loads[piece.experts], self.starts[piece.first] + piece.skipped
        if min(loads) == max(loads):  # one after the other
            rows = slice(first, first + len(loads) * piece.rows)
            return rows if self.choice_N is None else self.choice_N[rows]
        assert self.choice_N is not None
        start_G1, load_G1 = (torch.tensor(all_[piece.experts])[:, None] for all_ in (self.starts, self.loads))
        slot_C = torch.arange(piece.rows)
        row_GC = (start_G1 + slot_C).clamp_(max=self.number - 1)
        return self.choice_N[row_GC].masked_fill_(slot_C >= load_G1, self.number).flatten()

    def read(self, x_ND: Tensor, source: slice | Tensor, piece: Piece) -> Tensor:
        """Those rows (G, C, D). An empty one holds the input's last row, which must be finite."""
        x_PD = x_ND[source] if isinstance(source, slice) else x_ND.index_select(0, source.clamp(max=x_ND.shape[0] - 1))
        return x_PD.view(-1, piece.rows, x_ND.shape[1])

    def output(self, x_ND: Tensor) -> Tensor:
        """For as many rows (N + 1, D), zero where no expert writes; the last one is for the empty ones."""
        make = x_ND.new_zeros if self.leave_out else x_ND.new_empty
        return make(self.number + 1, x_ND.shape[1])


def _write(y_ND: Tensor, source: slice | Tensor, value_GCD: Tensor) -> None:
    if isinstance(source, slice):
        y_ND[source] = value_GCD.flatten(0, 1)
    else:
        y_ND.index_copy_(0, source, value_GCD.flatten(0, 1))


def _forward(
    x_ND: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, choice_N: Tensor | None, end_E: Tensor, activation: str,
    threads: int, *, keep: bool = True, hidden_rows: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output (N, D), and what the backward pass needs of the hidden layer, in at least `hidden_rows`."""
    width = w_in_EDF.shape[2]
    rows, act = _Rows(x_ND, width, choice_N, end_E, threads), _ACTIVATIONS[activation]
    y_ND = rows.output(x_ND)
    kept_PF = x_ND.new_empty(hidden_rows or (rows.number_of_hidden if keep else rows.largest), width)
    for piece in rows.pieces:
        source, hidden = rows.source(piece), piece.hidden
        place_PF = kept_PF[hidden] if keep else kept_PF[: hidden.stop - hidden.start]
        x_GCD, h_GCF = rows.read(x_ND, source, piece), place_PF.view(-1, piece.rows, width)
        _product(x_GCD, w_in_EDF[piece.experts], out=h_GCF)
        _write(y_ND, source, _product(act.apply(act.keep(h_GCF)), w_out_EFD[piece.experts]))
    return y_ND[: rows.number], kept_PF


def _backward(
    grad_ND: Tensor, x_ND: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, choice_N: Tensor | None, end_E: Tensor,
    kept_PF: Tensor, activation: str, threads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the input and of both stacks."""
    width = w_in_EDF.shape[2]
    rows, act = _Rows(x_ND, width, choice_N, end_E, threads), _ACTIVATIONS[activation]
    grad_x_ND, grad_in_EDF, grad_out_EFD = rows.output(x_ND), torch.empty_like(w_in_EDF), torch.empty_like(w_out_EFD)
    if choice_N is not None:
        grad_ND = torch.cat([grad_ND, grad_ND.new_zeros(1, grad_ND.shape[1])])  # empty rows have none
    for piece in rows.pieces:
        source, experts, first = rows.source(piece), piece.experts, piece.skipped == 0
        x_GCD, grad_GCD = rows.read(x_ND, source, piece), rows.read(grad_ND, source, piece)
        kept_GCF = kept_PF[piece.hidden].view(-1, piece.rows, width)
        _add_product(grad_out_EFD[experts], act.apply(kept_GCF).mT, grad_GCD, first=first)
        grad_GCF = act.backward(_product(grad_GCD, w_out_EFD[experts].mT), kept_GCF)
        _add_product(grad_in_EDF[experts], x_GCD.mT, grad_GCF, first=first)
        _write(grad_x_ND, source, _product(grad_GCF, w_in_EDF[experts].mT))
    if idle := [expert for expert, load in enumerate(rows.loads) if load == 0]:
        grad_in_EDF[idle] = grad_out_EFD[idle] = 0.0
    return grad_x_ND[: rows.number], grad_in_EDF, grad_out_EFD


def _product(a_GIC: Tensor, b_GCO: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Threads share a plain product better than a batch of one."""
    if len(a_GIC) > 1:
        return torch.bmm(a_GIC, b_GCO, out=out)
    return torch.mm(a_GIC[0], b_GCO[0], out=None if out is None else out[0])[None]


def _add_product(sum_GIO: Tensor, a_GIC: Tensor, b_GCO: Tensor, *, first: bool) -> None:
    """`first`: of the parts of an expert's rows."""
    if first:
        _product(a_GIC, b_GCO, out=sum_GIO)
    else:  # of one expert
        torch.addmm(sum_GIO[0], a_GIC[0], b_GCO[0], out=sum_GIO[0])


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y_ND, kept_PF = _forward(*inputs)
        ctx.save_for_backward(*inputs[:5], kept_PF)
        ctx.how = inputs[5:]
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, w_in_EDF, w_out_EFD, choice_N, end_E, kept_PF = ctx.saved_tensors
        grads = _backward(grad_ND, x_ND, w_in_EDF, w_out_EFD, choice_N, end_E, kept_PF, *ctx.how)
        return *grads, None, None, None, None


# For compiled code the same is one operation, with shapes that do not depend on the router. Its last output is the
# number of threads, which says how the rows were cut: the compiler cannot ask for it.
@torch.library.custom_op("switch_lm::feed_forward", mutates_args=())
def _operation(
    x_ND: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, choice_N: Tensor | None, end_E: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    threads, rows = torch.get_num_threads(), _most_rows(x_ND, w_in_EDF)
    outputs = _forward(x_ND, w_in_EDF, w_out_EFD, choice_N, end_E, activation, threads, hidden_rows=rows)
    return *outputs, torch.tensor(threads)


def _most_rows(x_ND: Tensor, w_in_EDF: Tensor) -> int:
    """The most hidden rows that the pieces take, whatever the router does."""
    return max(1, x_ND.shape[0] + MOST_PADDING * w_in_EDF.shape[0])


@torch.library.custom_op("switch_lm::feed_forward_backward", mutates_args=())
def _operation_backward(
    grad_ND: Tensor, x_ND: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, choice_N: Tensor | None, end_E: Tensor,
    kept_PF: Tensor, threads: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _backward(grad_ND, x_ND, w_in_EDF, w_out_EFD, choice_N, end_E, kept_PF, activation, int(threads))


@_operation.register_fake
def _(x_ND, w_in_EDF, w_out_EFD, choice_N, end_E, activation):  # type: ignore[no-untyped-def]
    kept_PF = x_ND.new_empty(_most_rows(x_ND, w_in_EDF), w_in_EDF.shape[2])
    return torch.empty_like(x_ND), kept_PF, torch.empty((), dtype=torch.long)


@_operation_backward.register_fake
def _(grad_ND, x_ND, w_in_EDF, w_out_EFD, *others):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_ND), torch.empty_like(w_in_EDF), torch.empty_like(w_out_EFD)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.activation = inputs[5]


def _of_operation(ctx: Any, grad_ND: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_operation_backward(grad_ND, *ctx.saved_tensors, ctx.activation), None, None, None


_operation.register_autograd(_of_operation, setup_context=_save)


def feed_forward(
    x_ND: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, choice_N: Tensor | None, end_E: Tensor, *, activation: str
) -> Tensor:
    """activation(x W_in[e]) W_out[e] of each row's expert e (N, D); 0 where a row has none.

    `choice_N`: the rows, sorted by expert, those of expert e before place `end_E[e]`; None: all, in their order.
    """
    if torch.compiler.is_compiling():
        return _operation(x_ND, w_in_EDF, w_out_EFD, choice_N, end_E, activation)[0]
    inputs = x_ND, w_in_EDF, w_out_EFD, choice_N, end_E, activation, torch.get_num_threads()
    if not torch.is_grad_enabled():
        return _forward(*inputs, keep=False)[0]
    y_ND: Tensor = _Eager.apply(*inputs)  # type: ignore[no-untyped-call]
    return y_ND
