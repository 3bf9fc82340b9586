"""Feed-forwards cut into pieces: which rows a piece has, and that the result is that of a loop over experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from switch_lm.model import cached, experts
from switch_lm.model.attention import rotary_table, rotate
from switch_lm.model.cached import Piece, feed_forward, pieces
from switch_lm.model.norm import RMSNorm
from switch_lm.model.switch import SwitchFeedForward

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu_squared": lambda h: F.relu(h) ** 2, "gelu": F.gelu
}  # fmt: skip


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nobody has written to holds NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("loads", "side_by_side", "want"),
    [
        ([10, 10], False, [Piece(0, 1, 10, 0, 0), Piece(1, 2, 10, 0, 10)]),
        ([10, 12], True, [Piece(0, 2, 12, 0, 0)]),  # two rows are empty
        ([10, 0, 75], True, [Piece(0, 2, 10, 0, 0), Piece(2, 3, 75, 0, 20)]),  # 65 would be
        ([60, 41], True, [Piece(0, 1, 60, 0, 0), Piece(1, 2, 41, 0, 60)]),  # 120 rows are too many
        ([150, 1], True, [Piece(0, 1, 75, 0, 0), Piece(0, 1, 75, 75, 75), Piece(1, 2, 1, 0, 150)]),
        ([0, 0], True, []),
    ],
)  # fmt: skip
def test_experts_with_few_rows_share_a_piece_and_one_with_many_has_several(
    loads: list[int], side_by_side: bool, want: list[Piece]
) -> None:
    assert pieces(loads, most_rows=100, side_by_side=side_by_side) == want


@pytest.mark.usefixtures("threads", "unwritten_memory_is_nan")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("left_out", [0, 3])
@pytest.mark.parametrize(
    "loads", [[3, 0, 70, 64, 1], [0, 0, 5, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [200, 7, 5, 9, 8]]
)
def test_experts_in_pieces_equal_a_loop_over_experts(
    loads: list[int], left_out: int, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`left_out` rows have no expert: their output is 0."""
    monkeypatch.setattr(cached, "CACHE_BYTES", 8 * 6 * 50)  # 50 rows
    monkeypatch.setattr(cached, "LEAST_ROWS", 1)
    torch.manual_seed(0)
    number = sum(loads) + left_out
    x_ND = torch.randn(number, 4, dtype=torch.float64, requires_grad=True)
    w_in_EDF, w_out_EFD = (torch.randn(5, *s, dtype=torch.float64, requires_grad=True) for s in ((4, 6), (6, 4)))
    order_N, end_E = torch.randperm(number), torch.tensor(loads).cumsum(0)
    choice_N = order_N.masked_fill(torch.arange(number) >= sum(loads), number)
    want_ND = torch.zeros(number, 4, dtype=torch.float64)
    for expert, rows_L in enumerate(order_N[: sum(loads)].split(loads)):
        h_LF = ACTIVATIONS[activation](x_ND[rows_L] @ w_in_EDF[expert])
        want_ND = want_ND.index_put((rows_L,), h_LF @ w_out_EFD[expert])
    over, weight_ND = (x_ND, w_in_EDF, w_out_EFD), torch.randn(number, 4, dtype=torch.float64)

    got_ND = feed_forward(*over, choice_N, end_E, activation=activation)
    torch.testing.assert_close(got_ND, want_ND)
    want, got = (torch.autograd.grad((y_ND * weight_ND).sum(), over, allow_unused=True) for y_ND in (want_ND, got_ND))
    for have, should, weight in zip(got, want, over, strict=True):
        torch.testing.assert_close(have, torch.zeros_like(weight) if should is None else should)
    with torch.no_grad():
        assert torch.equal(feed_forward(*over, choice_N, end_E, activation=activation), got_ND)


def test_gradients_do_not_depend_on_threads_that_change_between_the_passes() -> None:
    torch.manual_seed(0)
    over = [torch.randn(shape, requires_grad=True) for shape in ((200, 4), (4, 4, 6), (4, 6, 4))]
    before, end_E, grads = torch.get_num_threads(), torch.tensor([70, 75, 140, 200]), []
    try:
        for of_forward, of_backward in ((1, 1), (2, 1), (1, 2)):
            torch.set_num_threads(of_forward)
            y_ND = feed_forward(over[0], over[1], over[2], torch.arange(200), end_E, activation="relu")
            torch.set_num_threads(of_backward)
            grads.append(torch.autograd.grad(y_ND.sum(), over))
    finally:
        torch.set_num_threads(before)
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0])


def test_every_activation_of_a_feed_forward_can_be_computed_in_pieces() -> None:
    assert set(cached._ACTIVATIONS) == set(experts.ACTIVATIONS)


def test_a_compiled_layer_is_one_graph_for_all_loads_and_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    layer = SwitchFeedForward(d_model=8, d_ff=12, num_experts=4, capacity_factor=1.0, activation="relu_squared")
    layer.router.options.jitter = 0.0
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=False)
    for _ in range(3):
        x_BSD = torch.randn(2, 9, 8, requires_grad=True)
        results = []
        for call in (layer, compiled):
            y_BSD = call(x_BSD)[0]
            results.append([y_BSD, *torch.autograd.grad(y_BSD.square().sum(), [x_BSD, *layer.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert counter.frame_count == 1


def test_the_compiler_knows_the_shapes_and_gradients_of_the_operation() -> None:
    tensors = [torch.randn(shape).requires_grad_() for shape in ((6, 4), (2, 4, 3), (2, 3, 4))]
    inputs = *tensors, torch.tensor([5, 0, 3, 1, 6, 6]), torch.tensor([3, 4]), "gelu"
    said = "test_schema", "test_autograd_registration", "test_faketensor"  # results: above, since rows stay unwritten
    torch.library.opcheck(cached._operation, inputs, test_utils=said)


def test_the_gradients_of_norm_and_rotation_are_those_of_their_formulas() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(8).double()
    norm.weight.data.uniform_(0.5, 2.0)
    x_BHSW = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(x_BHSW), F.rms_norm(x_BHSW, (8,), norm.weight))
    cos_SW, sin_SW = rotary_table(5, 8)
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x_BHSW, norm.weight))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos_SW, sin_SW), x_BHSW)
