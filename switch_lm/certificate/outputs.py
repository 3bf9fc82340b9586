"""Does a layer give, and learn, what a plain loop over its experts would? And does its router keep to float32?"""

from collections.abc import Sequence

import torch

from switch_lm.certificate.finding import Finding, judged
from switch_lm.certificate.layers import Case, by_a_loop, gates_of
from switch_lm.probe.subject import Subject, calls, largest, noise

SAME = 1e-4  # of the largest output or gradient, float32
SAME_LOGITS = 1e-5  # of the largest one; a bf16 product is off by 1e-3 and more
ENOUGH = 16  # gates, before it shows that they are all the same


@torch.inference_mode()
def output(cases: Sequence[Case]) -> Finding:
    """gate x expert(the layer's clean input) for kept choices, 0 or what overflow says for others."""
    differences = []
    for case in cases:
        x_TD, routing = case.x_BSD.flatten(0, 1), case.routing
        gate_TK = gates_of(case.layer, routing.logits_TE.softmax(dim=-1), routing.assigned_TK)
        difference_TD = case.y_BSD.flatten(0, 1) - by_a_loop(case.layer, x_TD, routing, gate_TK)
        differences.append(difference_TD / case.y_BSD.abs().max().clamp(min=1e-20))
    difference = largest(differences)
    dropped = "gate x input" if cases[0].layer.rule.overflow == "passthrough" else "nothing"
    promise = f"gate x expert(clean input) for what was kept, {dropped} for what was dropped"
    return judged(
        "layer's output",
        difference <= SAME,
        f"differs by {difference:.1e} of the largest output from a plain loop",
        {"difference": difference},
        good=f"{promise}; in evaluation too",
        bad=f"a layer does not give {promise}",
    )


def gradients(subject: Subject) -> Finding:
    """Of router, experts and input, through the code that trains, against autograd's through the loop."""
    model = subject.without_noise()
    with calls(model) as seen, noise(0, subject.few[0].device), torch.no_grad():
        model(subject.few[0])
    off = dict.fromkeys(("router", "first matrices", "second matrices", "input"), 0.0)
    for call in seen:
        layer, x_BSD = call.layer, call.x_BSD.detach().requires_grad_()
        weight = torch.randn(call.x_BSD.shape, generator=torch.Generator().manual_seed(0)).to(x_BSD.device)
        inputs = [layer.w_router_DE, layer.experts.w_in_EDF, layer.experts.w_out_EFD, x_BSD]
        with noise(0, x_BSD.device), torch.enable_grad():
            y_BSD, routing = layer(x_BSD)
            x_TD = x_BSD.flatten(0, 1)
            prob_TE = (x_TD @ layer.w_router_DE).softmax(dim=-1)
            loop_TD = by_a_loop(layer, x_TD, routing, gates_of(layer, prob_TE, routing.assigned_TK))
            gradients, expected = (
                torch.autograd.grad((y * weight.view_as(y)).sum(), inputs, allow_unused=True, materialize_grads=True)
                for y in (y_BSD, loop_TD)
            )
        for name, gradient, should_be in zip(off, gradients, expected, strict=True):
            relative = (gradient - should_be).abs().max() / should_be.abs().max().clamp(min=1e-20)
            off[name] = torch.tensor([off[name], relative.item()]).max().item()  # NaN stays
    worst = max(off, key=lambda name: (off[name] != off[name], off[name]))
    return judged(
        "layer's gradients",
        off[worst] <= SAME,
        f"differ by {off[worst]:.1e} of the largest ({worst})",
        dict(off),
        good="router and experts are taught by the code that trains as by autograd through a plain loop",
        bad=f"the gradient of the {worst} is not that of a plain loop: training does not move it as it should",
    )


def gates(cases: Sequence[Case]) -> Finding:
    """Each gate against the softmax over all experts, in float64, of the router's logits."""
    off, broken = [], []
    for case in cases:
        gate_TK, layer = case.routing.gate_TK, case.layer
        should_be_TK = gates_of(layer, case.routing.logits_TE.double().softmax(dim=-1), case.routing.assigned_TK)
        off.append(gate_TK.double() - should_be_TK)
        if gate_TK.min() < 0.0 or gate_TK.max() > 1.0 + SAME_LOGITS:
            broken.append("one leaves 0 .. 1")
        varies = layer.rule.gate_scale == "probability" and layer.num_experts > 1 and gate_TK.numel() >= ENOUGH
        if varies and gate_TK.max() == gate_TK.min():
            broken.append("those of a layer are constant")
    gate_N = torch.cat([case.routing.gate_TK.flatten() for case in cases])
    low, high, furthest = gate_N.min().item(), gate_N.max().item(), largest(off)
    return judged(
        "gates",
        furthest <= SAME_LOGITS and not broken,
        f"{low:.3f} .. {high:.3f}, off by {furthest:.1e}",
        {"lowest": low, "highest": high, "off": furthest},
        good="what the rule makes of the chosen expert's probability among all experts",
        bad=f"not what the rule makes of the probability among all experts ({broken[0] if broken else 'see how far'})",
    )


def float32_router(subject: Subject) -> Finding:
    """Under bf16 autocast, with and without a gradient, logits against the product in float64."""
    ids_BS, off, dtypes = subject.few[0], [], set()
    for model, grad in ((subject.model, False), (subject.without_noise(), True)):
        autocast = torch.autocast(ids_BS.device.type, dtype=torch.bfloat16)
        with calls(model) as seen, autocast, torch.set_grad_enabled(grad), noise(0, ids_BS.device):
            model(ids_BS)
        for call in seen:
            logits_TE = call.routing.logits_TE.detach()
            exact_TE = call.x_BSD.detach().flatten(0, 1).double() @ call.layer.w_router_DE.detach().double()
            off.append((logits_TE.double() - exact_TE) / exact_TE.abs().max().clamp(min=1e-20))
            dtypes |= {logits_TE.dtype, call.routing.gate_TK.dtype}
    furthest = largest(off)
    return judged(
        "float32 router",
        furthest <= SAME_LOGITS and dtypes == {torch.float32},
        f"logits off by {furthest:.1e} under bf16 autocast, in training and evaluation",
        {"off": furthest},
        good="bf16 is kept out of who goes where",
        bad="the router computes in bf16: near ties go either way",
    )
