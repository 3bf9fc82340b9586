"""Do the routers learn from language and balance, over experts that differ and are all used?"""

from __future__ import annotations

from itertools import combinations

import torch

from switch_lm.certificate.finding import Finding, held, judged
from switch_lm.measure.router_health import router_health
from switch_lm.measure.tallies import ValidationTally
from switch_lm.model.losses import language_loss, load_balancing_loss
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import LayerCall, Subject, calls, largest, noise, seeded
from switch_lm.text.windows import evaluation_batches

SAME = 1e-4  # of a balance loss, float32
ENOUGH = 100  # characters for each expert, before one without any says something
COPIES = 1e-3  # relative distance of two experts' outputs; independent ones are about 1.4 apart


def check(subject: Subject) -> list[Finding]:
    model = subject.without_noise()
    with calls(model) as seen:
        seeded(model, subject.few[0], seed=0)
    return [_learns(subject, model), _balance(seen), _different(seen), _used(subject)]


def _learns(subject: Subject, model: SwitchLM) -> Finding:
    """In training's rule and capacity."""
    with noise(0, subject.few[0].device):
        found = router_health(model, *subject.few, alpha=subject.alpha)
    layers = [
        f"{h.language_gradient:.2g}, {h.balance_gradient:.2g}, {'-' if h.cosine is None else f'{h.cosine:+.2f}'}"
        for h in found
    ]
    deaf = any(not health.learns for health in found)
    unbalanced = subject.alpha > 0.0 and any(h.num_experts > 1 and h.balance_gradient == 0.0 for h in found)
    meaning = "the language loss moves every router, not the balance loss alone"
    if deaf:
        meaning = "a router learns nothing from the text: its choices only even the load"
    elif unbalanced:
        meaning = f"the balance loss does not reach a router, although alpha is {subject.alpha:g}"
    figures = {f"layer {layer:02d}": health.scalars() for layer, health in enumerate(found)}
    measured = f"|d CE/d W_r|, |alpha d balance/d W_r|, cosine by layer: {'; '.join(layers)}"
    return Finding("router learns", held(not deaf and not unbalanced), measured, meaning, figures)


def _balance(seen: list[LayerCall]) -> Finding:
    """E x sum f P, recomputed in float64 from what the router gave and what was selected (eq. 4 to 6)."""
    off, values = [], []
    for call in seen:
        num_experts, choices_N = call.layer.num_experts, call.routing.expert_TK.flatten()
        f_E = torch.bincount(choices_N, minlength=num_experts).double() / choices_N.numel()
        p_E = call.routing.logits_TE.double().softmax(dim=-1).mean(dim=0)
        values.append(load_balancing_loss(call.routing).double())
        off.append(values[-1] - num_experts * (f_E * p_E).sum())
    furthest = largest(off)
    measured = f"{', '.join(f'{value.item():.3f}' for value in values)} by layer, off by {furthest:.1e}"
    good = "E x sum f P: of what was selected before drops, and of p without a bias"
    return judged("balance loss", furthest <= SAME, measured, {"off": furthest}, good=good, bad="not E x sum f P")


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
    distance = distances[nearest]
    measured = f"nearest pair {distance:.3g} apart (layer {layer:02d}, experts {i} and {j})"
    good = "no two experts of a layer are copies (unrelated ones are 1.41 apart)"
    bad = "experts are copies: not drawn independently, or taken from a dense run (init_from) and not trained since"
    return judged("experts differ", distance > COPIES, measured, {"distance": distance}, good=good, bad=bad)


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
    enough = subject.validation_ids.numel() >= ENOUGH * share_LE.shape[1]
    meaning = "no expert starves" if idle == 0 else f"{idle} of {share_LE.numel()} experts never get a character"
    if idle and not enough:
        meaning += ", but the text is too short to judge"
    measured = f"the idlest gets {least:.2f} x an even share (layer {layer:02d}, expert {expert}), the busiest "
    measured += f"{share_LE.max().item():.2f} x; val/loss {tally.loss:.4f}"
    figures = {"least": least, "most": share_LE.max().item(), "idle": idle, "val_loss": tally.loss}
    return Finding("every expert used", held(idle == 0 or not enough), measured, meaning, figures)
