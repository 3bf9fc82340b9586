"""Do the routers learn from language, in float32, over experts that differ and are all used?"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from switch_lm.check.finding import Finding, held
from switch_lm.check.subject import LayerCall, Subject, calls, largest, noise, seeded
from switch_lm.losses import language_loss
from switch_lm.model import SwitchLM
from switch_lm.router_health import router_health
from switch_lm.tallies import ValidationTally
from switch_lm.windows import evaluation_batches

SAME = 1e-5  # of a gate, or of the largest logit: float32; a bf16 product is off by 1e-3 and more
COPIES = 1e-3  # relative distance of two experts' outputs; independent ones are about 1.4 apart


def check(subject: Subject) -> list[Finding]:
    model = subject.without_noise()
    with calls(model) as seen:
        seeded(model, subject.few[0], seed=0)
    return [
        _learns(subject, model),
        _gates(seen),
        _float32(subject),
        _different(seen),
        _used(subject),
    ]


def _learns(subject: Subject, model: SwitchLM) -> Finding:
    """In training's rule and capacity."""
    with noise(0, subject.few[0].device):
        found = router_health(model, *subject.few, alpha=subject.alpha)
    layers = [
        f"{h.language_gradient:.2g}, {h.balance_gradient:.2g}, {'-' if h.cosine is None else f'{h.cosine:+.2f}'}"
        for h in found
    ]
    learns = all(health.learns for health in found)
    meaning = "the language loss moves every router, not the balance loss alone" if learns else (
        "a router learns nothing from the text: its choices only even the load"
    )  # fmt: skip
    figures = {f"layer {layer:02d}": health.scalars() for layer, health in enumerate(found)}
    measured = f"|d CE/d W_r|, |alpha d balance/d W_r|, cosine by layer: {'; '.join(layers)}"
    return Finding("router learns", held(learns), measured, meaning, figures)


def _gates(seen: list[LayerCall]) -> Finding:
    """Each gate against the softmax over all experts, in float64, of the router's logits."""
    off, broken = 0.0, []
    for number, call in enumerate(seen):
        off = max(off, largest([call.routing.gate_TK.double() - _should_be(call)]))
        gate_TK, rule = call.routing.gate_TK, call.layer.rule
        if gate_TK.min() < 0.0 or gate_TK.max() > 1.0 + SAME:
            broken.append(f"layer {number:02d} leaves 0 .. 1")
        varies = rule.gate_scale == "probability" and call.layer.num_experts > 1
        if varies and gate_TK.max() == gate_TK.min():
            broken.append(f"layer {number:02d} is constant")
    low, high = (f(torch.cat([c.routing.gate_TK.flatten() for c in seen])).item() for f in (torch.min, torch.max))
    holds = off <= SAME and not broken
    meaning = "the chosen expert's probability among all experts, as the rule says" if holds else (
        f"not what the rule makes of the probability among all experts ({'; '.join(broken) or 'see how far off'})"
    )  # fmt: skip
    measured = f"{low:.3f} .. {high:.3f}, off by {off:.1e}"
    return Finding("gates", held(holds), measured, meaning, {"lowest": low, "highest": high, "off": off})


def _should_be(call: LayerCall) -> Tensor:
    """The gate that the rule makes of p (eq. 1 and 2), float64 (T, K)."""
    rule, routing = call.layer.rule, call.routing
    prob_TK = routing.logits_TE.double().softmax(dim=-1).gather(1, routing.assigned_TK)
    if rule.renormalize_gates:
        return prob_TK / prob_TK.sum(dim=-1, keepdim=True)
    return torch.ones_like(prob_TK) if rule.gate_scale == "straight_through" else prob_TK


def _float32(subject: Subject) -> Finding:
    """Under bf16 autocast, logits against the product in float64."""
    ids_BS = subject.few[0]
    with calls(subject.model) as seen, torch.autocast(ids_BS.device.type, dtype=torch.bfloat16):
        seeded(subject.model, ids_BS, seed=0)
    off, dtypes = 0.0, set()
    for call in seen:
        exact_TE = call.x_BSD.flatten(0, 1).double() @ call.layer.w_router_DE.detach().double()
        off = max(off, ((call.routing.logits_TE.double() - exact_TE).abs().max() / exact_TE.abs().max()).item())
        dtypes |= {call.routing.logits_TE.dtype, call.routing.gate_TK.dtype}
    holds = off <= SAME and dtypes == {torch.float32}
    meaning = "bf16 is kept out of who goes where" if holds else "the router computes in bf16: near ties go either way"
    measured = f"logits off by {off:.1e} under bf16 autocast"
    return Finding("float32 router", held(holds), measured, meaning, {"off": off})


@torch.inference_mode()
def _different(seen: list[LayerCall]) -> Finding:
    """The outputs of any two experts of a layer on the same tokens."""
    distances = {}
    for number, call in enumerate(seen):
        x_TD, experts = call.x_BSD.flatten(0, 1), call.layer.experts
        y_ETD = experts.padded(x_TD.expand(call.layer.num_experts, *x_TD.shape))
        for i, j in combinations(range(len(y_ETD)), 2):
            scale = torch.stack([y_ETD[i].norm(), y_ETD[j].norm()]).square().mean().sqrt().clamp(min=1e-20)
            distances[number, i, j] = ((y_ETD[i] - y_ETD[j]).norm() / scale).item()
    if not distances:
        return Finding("experts differ", held(True), "a single expert in a layer", "there is no other to be equal to")
    layer, i, j = nearest = min(distances, key=lambda pair: distances[pair])
    holds = distances[nearest] > COPIES
    meaning = "no two experts of a layer are copies (unrelated ones are 1.41 apart)" if holds else (
        "experts are copies of each other: they were not drawn independently"
    )  # fmt: skip
    measured = f"nearest pair {distances[nearest]:.2f} apart (layer {layer:02d}, experts {i} and {j})"
    return Finding("experts differ", held(holds), measured, meaning, {"distance": distances[nearest]})


@torch.inference_mode()
def _used(subject: Subject) -> Finding:
    """Over the whole validation split, as validation routes it."""
    tally = ValidationTally()
    batches = evaluation_batches(
        subject.validation_ids, context_length=subject.model.config.context_length, batch_size=subject.batch_size
    )
    for ids_BS, target_BS in batches:
        output = subject.model(ids_BS)
        tally.add(language_loss(output.logits, target_BS), target_BS.numel(), output.routings)
    assert tally.load_LE is not None
    share_LE = tally.load_LE / tally.load_LE.sum(dim=1, keepdim=True) * tally.load_LE.shape[1]
    layer, expert = divmod(int(share_LE.argmin()), share_LE.shape[1])
    idle, least = int((tally.load_LE == 0).sum()), share_LE.min().item()
    meaning = "no expert starves" if idle == 0 else f"{idle} of {share_LE.numel()} experts never get a character"
    measured = f"the idlest gets {least:.2f} x an even share (layer {layer:02d}, expert {expert}), the busiest "
    measured += f"{share_LE.max().item():.2f} x; val/loss {tally.loss:.4f}"
    figures = {"least": least, "most": share_LE.max().item(), "idle": idle, "val_loss": tally.loss}
    return Finding("every expert used", held(idle == 0), measured, meaning, figures)
