"""Does a layer give, and learn, what a plain loop over its experts would? And does its router keep to float32?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, Verdict, judged
from switch_lm.certificate.layers import Case, Judged, by_a_loop, by_oracle
from switch_lm.probe.subject import LayerCall, Subject, calls, largest, noise, share, used
from switch_lm.routers.options import RouterOptions

SAME = 1e-4  # of the largest output or gradient, float32
SAME_LOGITS = 1e-5  # of the largest logit or gate; a bf16 product is off by 1e-3 and more
ENOUGH = 16  # gates, before it shows that they are all the same


@torch.inference_mode()
def output(cases: Sequence[Case]) -> Finding:
    """gate x expert(the layer's clean input) for kept choices, 0 or what overflow says for others.

    With noise on the router's input the gates are the routing's, without it the oracle's.
    """
    differences, passes_dropped = [], False
    for case in cases:
        result = case.judged
        passes_dropped = result.expected.passes_dropped
        for call, gate_N in ((case, case.routing.gate_N), (case.quiet, result.gate_N(case.quiet.routing))):
            loop_TD = by_a_loop(
                call.layer, call.x_BSD.flatten(0, 1), call.routing, gate_N, passes_dropped=passes_dropped
            )
            difference_TD = call.y_BSD.flatten(0, 1) - loop_TD
            differences.append(difference_TD / call.y_BSD.abs().max().clamp(min=1e-20))
    difference = largest(differences)
    promise = (
        f"gate x expert(clean input) for what was kept, {'gate x input' if passes_dropped else 'nothing'} for what was "
        "dropped"
    )
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
        for name, difference in _gradients(call, subject.model.router_options):
            off[name] = torch.tensor([off[name], difference]).max().item()  # NaN stays
    worst = max(off, key=lambda name: (off[name] != off[name], off[name]))
    return judged(
        "layer's gradients",
        off[worst] <= SAME,
        f"differ by {off[worst]:.1e} of the largest ({worst})",
        dict(off),
        good="router and experts are taught by the code that trains as by autograd through a plain loop",
        bad=f"the gradient of the {worst} is not that of a plain loop: training does not move it as it should",
    )


def _gradients(call: LayerCall, options: RouterOptions) -> list[tuple[str, float]]:
    """How far each gradient of a layer is from the loop's, as a share of the largest, by name."""
    layer, x_BSD = call.layer, call.x_BSD.detach().requires_grad_()
    of_router = [weight for weight in layer.router.parameters() if weight.requires_grad]
    names = [*["router"] * len(of_router), "first matrices", "second matrices", "input"]
    inputs = [*of_router, layer.experts.w_in_EDF, layer.experts.w_out_EFD, x_BSD]
    weight = torch.randn(x_BSD.shape, generator=torch.Generator().manual_seed(0)).to(x_BSD.device)
    with calls(layer) as again, noise(0, x_BSD.device), torch.enable_grad():
        y_BSD, routing = layer(x_BSD, ids_BS=call.ids_BS, position_S=call.position_S)
        result = Judged.of(routing, by_oracle(again[0], options))
        passes_dropped = result.expected.passes_dropped
        loop_TD = by_a_loop(layer, x_BSD.flatten(0, 1), routing, result.gate_N(routing), passes_dropped=passes_dropped)
        gradients, expected = (
            torch.autograd.grad(
                (y * weight.view_as(y)).sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for y in (y_BSD, loop_TD)
        )
    return [
        (name, ((gradient - should_be).abs().max() / should_be.abs().max().clamp(min=1e-20)).item())
        for name, gradient, should_be in zip(names, gradients, expected, strict=True)
    ]


def gates(cases: Sequence[Case]) -> Finding:
    """Each gate against the oracle's."""
    off, expected, constant = list[Tensor](), list[Tensor](), False
    for case in cases:
        result, routing = case.judged, case.quiet.routing
        gate_N = case.routing.gate_N[used(case.routing)]
        expected.append(result.gate_N(routing)[used(routing)])
        off.append(routing.gate_N[used(routing)] - expected[-1])
        varies = case.promise.varies_gates and case.layer.num_experts > 1 and gate_N.numel() >= ENOUGH
        constant |= varies and bool(gate_N.max() == gate_N.min())
    gate_N = torch.cat([case.routing.gate_N[used(case.routing)] for case in cases])
    if not gate_N.numel():
        return Finding(
            "gates", Verdict.PASS, "none: no expert takes any of these tokens", "there is nothing to compare"
        )
    low, high, furthest = gate_N.min().item(), gate_N.max().item(), share([torch.cat(off)], [torch.cat(expected)])
    return judged(
        "gates",
        furthest <= SAME_LOGITS and not constant,
        f"{low:.3f} .. {high:.3f}, off by {furthest:.1e} of the largest",
        {"lowest": low, "highest": high, "off": furthest},
        good="what the rule makes of the token's score for the expert",
        bad="not what the rule makes of the token's score for the expert "
        f"({'those of a layer are constant' if constant else 'see how far'})",
    )


def float32_router(subject: Subject) -> Finding:
    """Under bf16 autocast, with and without a gradient, logits against the product in float64, where there are any."""
    ids_BS, off, dtypes = subject.few[0], list[Tensor](), set()
    for model, grad in ((subject.model, False), (subject.without_noise(), True)):
        autocast = torch.autocast(ids_BS.device.type, dtype=torch.bfloat16)
        with calls(model) as seen, autocast, torch.set_grad_enabled(grad), noise(0, ids_BS.device):
            model(ids_BS)
        for call in seen:
            logits_TE, w_DE = call.routing.logits_TE, call.layer.router.w_DE
            dtypes |= {call.routing.scores_TE.dtype, call.routing.gate_N.dtype}
            if logits_TE is not None and w_DE is not None:
                exact_TE = call.x_BSD.detach().flatten(0, 1).double() @ w_DE.detach().double()
                off.append((logits_TE.detach().double() - exact_TE) / exact_TE.abs().max().clamp(min=1e-20))
                dtypes.add(logits_TE.dtype)
    furthest = largest(off)
    return judged(
        "float32 router",
        furthest <= SAME_LOGITS and dtypes == {torch.float32},
        f"logits off by {furthest:.1e} under bf16 autocast, in training and evaluation"
        if off
        else "no logits; scores and gates are float32 under bf16 autocast, in training and evaluation",
        {"off": furthest},
        good="bf16 is kept out of who goes where",
        bad="the router computes in bf16: near ties go either way",
    )
