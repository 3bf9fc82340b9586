"""Does a router do no more than it promises: how many experts, how much computation, what is drawn or rerouted?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, judged
from switch_lm.certificate.layers import Case, Factor, promise_of, run, selected_by_token
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import LayerCall, Subject, calls, noise, seeded, used
from switch_lm.routers.base import Router
from switch_lm.routers.routing import Routing

OTHERS = (1, 2)  # other texts of the same shape: each character is replaced by one so many further in the vocabulary


def check(subject: Subject, cases: Sequence[Case]) -> Finding:
    """In training and evaluation, at all capacities; what leaks, and where tokens go, has checks of its own."""
    broken = [problem for case in cases for problem in _broken(case)] + _varying(subject) + _learning(subject)
    promise = cases[0].promise
    number = promise.experts_per_token
    experts = "any number of experts" if number is None else "1 expert" if number == 1 else f"{number} experts"
    computed = "a fixed amount" if promise.fixed_computation else "an amount that varies"
    return judged(
        "promise",
        not broken,
        "; ".join(dict.fromkeys(broken)) or f"in training a token selects {experts}, and {computed} is computed",
        {"broken": len(broken)},
        good="as the router promises for training and evaluation, with a capacity and without",
        bad="the router promises otherwise: what is planned and reported of its computation is wrong",
    )


def _broken(case: Case) -> list[str]:
    """Of one call."""
    promise, routing = case.promise, case.quiet.routing
    wrong = []
    by_token = selected_by_token(routing)
    counts = {len(experts) for experts in by_token}
    if any(len(set(experts)) < len(experts) for experts in by_token):
        wrong.append(f"{case.condition}: a token selects an expert twice")
    if promise.experts_per_token is not None and counts != {promise.experts_per_token}:
        number = f"{min(counts)} to {max(counts)} experts, not {promise.experts_per_token}"
        wrong.append(f"{case.condition}: a token selects {number}")
    if not promise.reroutes and bool((routing.assigned_N != routing.expert_N)[used(routing)].any()):
        wrong.append(f"{case.condition}: another expert than the selected one computes")
    again = run(case.quiet, case.factor, seed=1).routing
    if not promise.draws and not torch.equal(_selection(again), _selection(routing)):
        wrong.append(f"{case.condition}: experts change with the seed")
    elif not (promise.draws or promise.shuffles) and not torch.equal(again.kept_N, routing.kept_N):
        wrong.append(f"{case.condition}: slots change with the seed")
    return wrong


def _selection(routing: Routing) -> Tensor:
    return torch.stack([routing.token_N, routing.expert_N, used(routing)])


def _varying(subject: Subject) -> list[str]:
    """Where other texts of the same shape make a router compute another amount, although it promises a fixed one."""
    config = subject.model.config
    tried: list[tuple[str, SwitchLM, Factor]] = [
        ("training", subject.without_noise(), config.capacity_factor),
        ("training without a limit", subject.without_noise(), None),
        ("evaluation", subject.model, config.eval_capacity_factor),
    ]
    wrong = []
    for where, model, factor in tried:
        texts = [(subject.few[0] + shift) % model.vocab_size for shift in (0, *OTHERS)]
        amounts = []
        for ids_BS in texts:
            with calls(model) as seen:
                seeded(model, ids_BS, seed=0, capacity_factor=factor)
            amounts.append([_amount(call.routing) for call in seen])
        fixed = all(promise_of(call).fixed_computation for call in seen)
        if fixed and any(amount != amounts[0] for amount in amounts):
            wrong.append(f"{where}: the amount of computation depends on the text")
    return wrong


def _amount(routing: Routing) -> tuple[int, int]:
    """The length of the list, and how many rows the experts compute: all slots, or without a capacity what is used."""
    slots = None if routing.capacity is None else routing.num_experts * routing.num_groups * routing.capacity
    return routing.token_N.numel(), int(routing.num_assignments) if slots is None else slots


def _learning(subject: Subject) -> list[str]:
    """Weights that the language loss moves, although the router promises that it does not learn."""
    model = subject.without_noise()
    with calls(model) as seen, noise(0, subject.few[0].device), torch.enable_grad():
        output = model(subject.few[0])
    moved = [_moved(call, output.logits.square().sum()) for call in seen if not promise_of(call).learns]
    return ["training: the language loss moves the router's weights"] if any(moved) else []


def _moved(call: LayerCall, loss: Tensor) -> bool:
    router: Router = call.layer.router
    weights = [weight for weight in router.parameters() if weight.requires_grad]
    if not weights:
        return False
    grads = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
    return any(bool(grad.any()) for grad in grads)
