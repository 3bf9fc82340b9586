"""Experts on rows sorted by expert: every row is multiplied by the matrices of its own expert alone."""

from __future__ import annotations

import pytest
import torch

from switch_lm.model.experts import Experts


@pytest.mark.parametrize("loads", [[3, 0, 70, 64, 1], [0, 0, 5, 0, 0], [1, 1, 1, 1, 1]])
def test_ragged_experts_equal_a_loop_over_experts(loads: list[int]) -> None:
    torch.manual_seed(0)
    experts = Experts(num_experts=5, d_model=4, d_ff=6).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x_ND = torch.randn(sum(loads), 4, dtype=torch.float64, requires_grad=True)
    over = [x_ND, *experts.parameters()]

    rows = x_ND.split(loads)
    want_ND = torch.cat([(rows[e] @ experts.w_in_EDF[e]).relu() @ experts.w_out_EFD[e] for e in range(5)])
    got_ND = experts.ragged(x_ND, loads)
    torch.testing.assert_close(got_ND, want_ND)

    weights_ND = torch.randn_like(want_ND)
    want, got = (torch.autograd.grad((y_ND * weights_ND).sum(), over) for y_ND in (want_ND, got_ND))
    torch.testing.assert_close(got, want)
    idle = torch.tensor(loads) == 0
    assert not got[1][idle].any() and not got[2][idle].any()  # an expert without tokens has a gradient of 0


@pytest.mark.parametrize("expert", [0, 3])
def test_a_single_token_gets_the_output_of_its_own_expert(expert: int) -> None:
    torch.manual_seed(0)
    experts = Experts(num_experts=5, d_model=4, d_ff=6)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x_1D, loads = torch.randn(1, 4), [int(e == expert) for e in range(5)]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(experts.one_token(x_1D, torch.tensor([[expert]])), experts.ragged(x_1D, loads))
