"""Do the routers learn from language and balance, over experts that differ and are all used?"""

from itertools import combinations

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, Verdict, judged
from switch_lm.certificate.layers import by_oracle
from switch_lm.measure.router_health import router_health
from switch_lm.measure.tallies import ValidationTally
from switch_lm.model import devices
from switch_lm.model.losses import language_loss
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import LayerCall, Subject, calls, largest, noise, seeded, used
from switch_lm.text.windows import EvaluationBatches

SAME = 1e-4  # of a balance loss, float32
MEAN_WITHIN = 2.0  # times the mean number of experts per character that a router's options state
ENOUGH = 100  # characters for each expert, before one without any says something
FEW_EXPERTS = 64  # of which every pair is compared
COPIES = 1e-3  # relative distance of two experts' outputs; independent ones are about 1.4 apart


def check(subject: Subject) -> list[Finding]:
    model = subject.without_noise()
    with calls(model) as seen:
        seeded(model, subject.few[0], seed=0)
    judge = [_balance(subject, seen)] if has_oracle(subject) else []
    return [_learns(subject, model, seen), *judge, _different(subject, seen), _used(subject)]


def has_oracle(subject: Subject) -> bool:
    """Whether every router has an oracle, without which nobody knows what it should do."""
    return all(router.oracle is not None for router in subject.model.routers)


def _learns(subject: Subject, model: SwitchLM, seen: list[LayerCall]) -> Finding:
    """In training's rule and capacity."""
    with noise(0, subject.few[0].device):
        layers = router_health(model, *subject.few, alpha=subject.alpha)
    gradients = "; ".join(
        f"{h.language_gradient:.2g}, {h.balance_gradient:.2g}, {'-' if h.cosine is None else f'{h.cosine:+.2f}'}"
        for h in layers
    )
    deaf = any(not health.learns for health in layers)
    learns = "the language loss moves every router, not the balance loss alone"
    if all(not health.can_learn for health in layers):
        frozen = bool(subject.model.router_parameters())
        learns = "frozen by design, not dead" if frozen else "by design no router has weights to train"
    unbalanced = subject.alpha > 0.0 and any(
        health.num_experts > 1 and health.can_learn and health.balance_gradient == 0.0
        for health, call in zip(layers, seen, strict=True)
        if _balance_loss(call) is not None
    )
    return judged(
        "router learns",
        not deaf and not unbalanced,
        f"|d CE/d W_r|, |alpha d balance/d W_r|, cosine by layer: {gradients}",
        {
            f"layer {block:02d}": health.scalars()
            for block, health in zip(subject.model.config.switch_blocks, layers, strict=True)
        },
        good=learns,
        bad="a router learns nothing from the text: its choices only even the load"
        if deaf
        else f"the balance loss does not reach a router, although alpha is {subject.alpha:g}",
    )


def _balance_loss(call: LayerCall) -> torch.Tensor | None:
    return call.layer.router.aux_losses(call.routing).get("balance")


@torch.inference_mode()
def _balance(subject: Subject, seen: list[LayerCall]) -> Finding:
    """E x sum f P, recomputed in float64 from the oracle's p and what was selected (eq. 4 to 6)."""
    off, values = [], []
    for call in seen:
        if (loss := _balance_loss(call)) is not None:
            num_experts, choices_N = call.layer.num_experts, call.routing.expert_N[used(call.routing)]
            f_E = torch.bincount(choices_N, minlength=num_experts).double() / max(1, choices_N.numel())
            p_E = by_oracle(call, subject.model.router_options).probs_TE.double().mean(dim=0)
            values.append(loss.double())
            off.append(values[-1] - num_experts * (f_E * p_E).sum())
    if not values:
        return Finding("balance loss", Verdict.PASS, "none", "this router has no balance loss: alpha does nothing")
    furthest = largest(off)
    return judged(
        "balance loss",
        furthest <= SAME,
        f"{', '.join(f'{value.item():.3f}' for value in values)} by layer, off by {furthest:.1e}",
        {"off": furthest},
        good="E x sum f P: of what was selected before drops, and of p without a bias",
        bad="not E x sum f P",
    )


@torch.inference_mode()
def _different(subject: Subject, seen: list[LayerCall]) -> Finding:
    """The outputs of any two experts of a layer on the same tokens."""
    distances = {}
    for block, call in zip(subject.model.config.switch_blocks, seen, strict=True):
        y_ETD = call.every_output_ETD()
        for i, j in combinations(range(len(y_ETD)), 2) if len(y_ETD) <= FEW_EXPERTS else _nearest(y_ETD):
            scale = torch.stack([y_ETD[i].norm(), y_ETD[j].norm()]).square().mean().sqrt().clamp(min=1e-20)
            distances[block, i, j] = ((y_ETD[i] - y_ETD[j]).norm() / scale).item()
    if not distances:
        alone = "there is no other to be equal to"
        return Finding("experts differ", Verdict.PASS, "a single expert in a layer", alone)
    block, i, j = nearest = min(distances, key=lambda pair: distances[pair])
    distance = distances[nearest]
    return judged(
        "experts differ",
        distance > COPIES,
        f"nearest pair {distance:.3g} apart (layer {block:02d}, experts {i} and {j})",
        {"distance": distance},
        good="no two experts of a layer are copies (unrelated ones are 1.41 apart)",
        bad="experts are copies: not drawn independently, or taken from a dense run (init_from) and not trained since",
    )


def _nearest(y_ETD: Tensor) -> list[tuple[int, int]]:
    """For each expert but the first the nearest one before it, by products, which are quicker than differences."""
    y_EN = devices.widened(y_ETD.flatten(1))
    square_E = y_EN.square().sum(dim=1)
    distance_EE = 1.0 - 2.0 * (y_EN @ y_EN.T) / (square_E[:, None] + square_E).clamp(min=1e-40)
    before_EE = torch.ones_like(distance_EE, dtype=torch.bool).tril(-1)
    nearest_E = distance_EE.masked_fill(~before_EE, torch.inf).argmin(dim=1)
    return [(j, i) for i, j in enumerate(nearest_E.tolist()) if i > 0]


@torch.inference_mode()
def _used(subject: Subject) -> Finding:
    """Over the whole validation split, as validation routes it."""
    tally = ValidationTally()
    batches = EvaluationBatches(
        subject.validation_ids, context_length=subject.model.config.context_length, batch_size=subject.batch_size
    )
    for ids_BS, target_BS in batches:
        output = subject.model(ids_BS)
        tally.add(language_loss(output.logits, target_BS), target_BS.numel(), output.routings)
    assert tally.load_LE is not None
    share_LE = tally.load_LE / tally.load_LE.sum(dim=1, keepdim=True).clamp(min=1) * tally.load_LE.shape[1]
    layer, expert = divmod(int(share_LE.argmin()), share_LE.shape[1])
    idlest = f"layer {subject.model.config.switch_blocks[layer]:02d}, expert {expert}"
    idle, least, most = int((tally.load_LE == 0).sum()), share_LE.min().item(), share_LE.max().item()
    num_characters = subject.validation_ids.numel()
    judgeable = num_characters >= ENOUGH * share_LE.shape[1]
    per_character = tally.load_LE.sum().item() / len(share_LE) / (num_characters - 1)
    starving = f"{idle} of {share_LE.numel()} experts never get a character"
    config = subject.model.config
    stated = subject.model.router_options.experts_per_token(config.num_experts, config.capacity_factor)
    off = judgeable and subject.promise(training=False, limited=False).keeps_mean
    off = off and not 1 / MEAN_WITHIN <= per_character / stated <= MEAN_WITHIN
    return judged(
        "every expert used",
        not off and (idle == 0 or not judgeable),
        f"the idlest gets {least:.2f} x an even share ({idlest}), the busiest {most:.2f} x; "
        f"{per_character:.2f} experts per character; val/loss {tally.loss:.4f}",
        {"least": least, "most": most, "idle": idle, "experts_per_token": per_character, "val_loss": tally.loss},
        good="no expert starves" if idle == 0 else f"{starving}, but the text is too short to judge",
        bad=f"its rule promises about {stated:g} experts per character" if off else starving,
    )
