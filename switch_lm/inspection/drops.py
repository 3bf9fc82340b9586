"""Which tokens are dropped at the training capacity, and what each token's own drop costs it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.measure.scoring import negative_log_likelihood
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, read, rewind, switch_layers
from switch_lm.probe.subject import Subject, noise, promised, used, without_slot
from switch_lm.routers.routing import Routing
from switch_lm.stats.clusters import LEAST, difference, mean, mean_where
from switch_lm.stats.information import Explained, explained
from switch_lm.stats.intervals import Estimate
from switch_lm.stats.shares import FIFTHS, fifths, independent, shares_by
from switch_lm.text.classes import CHARACTER


@dataclass(frozen=True)
class Drops:
    """Tokens that a selected expert did not compute; rerouted and passed-through tokens count too.

    Shares are NaN where there is no token. `Q`: fifths of the tokens by their loss with nothing dropped, easiest first.
    """

    capacity_factor: float
    batch_size: int
    unit: str  # what was sampled independently: "batch" if its rows share places, else "window"
    dropped_LBS: Tensor
    by_character_LV: Tensor
    by_position_LS: Tensor
    by_row_LR: Tensor  # row of its batch
    by_difficulty_LQ: Tensor
    by_expert_LE: Tensor  # of the assignments that select it
    character: tuple[Explained, ...]  # per layer, how much of who is dropped the character explains
    late_positions: Estimate | None  # share of the later half of a window less that of the earlier; mean over layers
    late_rows: Estimate | None  # the same of a batch's rows
    hardest: Estimate | None  # the hardest fifth less the easiest
    cost: Estimate | None  # nats that their own drops add to the loss of tokens dropped in any layer, mean
    at_once: tuple[float, ...]  # share of tokens dropped in exactly 0, 1, .. layers
    at_once_by_chance: tuple[float, ...]  # if layers dropped independently

    @property
    def comparisons(self) -> int:
        """How many intervals there are: each is corrected for all."""
        return len(self.character) + 4

    def mean(self, layer: int) -> Estimate:
        """The share of its tokens that is dropped."""
        rows = self.batch_size if self.unit == "batch" else 1
        return mean(self.dropped_LBS[layer].double().flatten().view(self.dropped_LBS.shape[1] // rows, -1))

    @property
    def compared(self) -> dict[str, Estimate | None]:
        """The intervals of all layers together, by what they are."""
        return {
            "later minus earlier half of a window": self.late_positions,
            "later minus earlier half of a batch's rows": self.late_rows,
            "hardest fifth by loss less the easiest": self.hardest,
            "loss added to a token by dropping it": self.cost,
        }


def drops(
    model: SwitchLM,
    probe: Probe,
    *,
    batch_size: int,
    capacity_factor: float | None = None,
    seed: int = 0,
    say: Say = silent,
) -> Drops:
    """Runs the model as in training, in whole batches of `batch_size` windows, without dropout, jitter, random drops.

    If rows of a batch share places, a batch is one unit: then as many windows are read as LEAST batches have, where the
    text is long enough. `capacity_factor`: that of training, unless given; a ValueError where there is none. A router
    that draws its experts routes as in evaluation.
    """
    capacity_factor = capacity_factor or model.config.capacity_factor
    if capacity_factor is None:
        raise ValueError("trained without a capacity: nothing is dropped; give a capacity_factor to try one")
    if shared := promised(model, training=True, limited=True).depends_on_rows:
        B, S = probe.ids_BS.shape
        probe = Probe.of(probe.split_ids, context_length=S, num_windows=max(B, LEAST * batch_size))
    batch_size = min(batch_size, len(probe.ids_BS))
    dropped_LBS, cost_BS, by_expert_LE = costs(model, probe, batch_size, capacity_factor, seed=seed, say=say)
    windows = len(cost_BS)
    return summary(
        dropped_LBS,
        cost_BS,
        by_expert_LE=by_expert_LE,
        ids_BS=probe.ids_BS[:windows],
        nll_BS=read(model, probe).nll_BS[:windows],
        num_characters=model.vocab_size,
        capacity_factor=capacity_factor,
        batch_size=batch_size,
        shared=shared,
        seed=seed,
    )


def costs(
    model: SwitchLM, probe: Probe, batch_size: int, capacity_factor: float, *, seed: int = 0, say: Say = silent
) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens each layer drops (L, B, S), and what its own drops add to each token's loss (B, S), in nats.

    And the share of the assignments that select an expert which it does not compute (L, E): NaN where none selects it.
    Each token is scored a second time with a slot in every layer, while all tokens before it stay as they were.
    """
    switch_layers(model)
    dropping = Subject(model, probe.split_ids, batch_size, alpha=0.0).without_noise()
    for router in dropping.routers:
        router.train(not router.promise(training=True, limited=True).draws)
    batches = [batch for batch in probe.batches(batch_size) if len(batch[0]) == batch_size]
    result = []
    with torch.inference_mode(), noise(seed, probe.ids_BS.device):
        for number, (ids_BS, target_BS) in enumerate(batches):
            say(f"drops, window {number * batch_size} of {len(batches) * batch_size}")
            result.append(_batch(dropping, ids_BS, target_BS, capacity_factor))
    dropped, cost, counts = zip(*result, strict=True)
    dropped_LE, selected_LE = torch.stack(counts).sum(dim=0)
    return torch.cat(dropped, dim=1), torch.cat(cost), dropped_LE / selected_LE


def _batch(model: SwitchLM, ids_BS: Tensor, target_BS: Tensor, capacity_factor: float) -> tuple[Tensor, ...]:
    """Which tokens are dropped (L, B, S), what their own drops add to their loss (B, S), and the number of drops.

    That is of the assignments to each expert that it did not compute, and of all (2, L, E).
    From the last position to the first: keys and values of what stands before are those of the pass with drops. A
    position at which no row has a drop is not read again.
    """
    cache = model.new_cache()
    output = model(ids_BS, cache=cache, capacity_factor=capacity_factor)
    dropped_LBS = torch.stack([_dropped(routing).view_as(ids_BS) for routing in output.routings])
    nll_BS = negative_log_likelihood(output.logits, target_BS)
    placed_BS = nll_BS.clone()
    for t in reversed(dropped_LBS.any(dim=(0, 1)).nonzero().flatten().tolist()):
        rewind(cache, t)
        logits = model(ids_BS[:, t : t + 1], cache=cache, capacity_factor=None).logits
        placed_BS[:, t : t + 1] = negative_log_likelihood(logits, target_BS[:, t : t + 1])
    number = [
        torch.stack([r.expert_N[which(r)].bincount(minlength=model.config.num_experts) for r in output.routings])
        for which in (without_slot, used)
    ]
    return dropped_LBS, nll_BS - placed_BS, torch.stack(number)


def _dropped(routing: Routing) -> Tensor:
    """Which tokens (T) have an assignment that the selected expert did not compute, bool."""
    dropped_T = torch.zeros(routing.num_tokens, dtype=torch.bool, device=routing.token_N.device)
    dropped_T[routing.token_N[without_slot(routing)]] = True
    return dropped_T


def summary(
    dropped_LBS: Tensor,
    cost_BS: Tensor,
    *,
    by_expert_LE: Tensor,
    ids_BS: Tensor,
    nll_BS: Tensor,
    num_characters: int,
    capacity_factor: float,
    batch_size: int,
    shared: bool,
    seed: int = 0,
) -> Drops:
    """`Drops` from what was dropped (L, B, S) and what its own drops add to each token's loss (B, S), in nats.

    `nll_BS` is the difficulty. `shared`: whether the rows of a batch share places, so that batches are the units.
    """
    (L, B, S), mean_BS, layers_BS = dropped_LBS.shape, dropped_LBS.float().mean(dim=0), dropped_LBS.sum(dim=0)
    position_BS, row_BS, fifth_BS = _places(nll_BS, batch_size)

    def units(value_BS: Tensor) -> Tensor:
        """One row for each unit."""
        return value_BS.reshape(B // batch_size if shared else B, -1)

    def halves(index_BS: Tensor, size: int) -> Estimate | None:
        return difference(*map(units, (mean_BS, index_BS >= (size + 1) // 2, index_BS < size // 2)))

    return Drops(
        capacity_factor,
        batch_size,
        "batch" if shared else "window",
        dropped_LBS,
        by_character_LV=shares_by(dropped_LBS, ids_BS, num_characters),
        by_position_LS=shares_by(dropped_LBS, position_BS, S),
        by_row_LR=shares_by(dropped_LBS, row_BS, batch_size),
        by_difficulty_LQ=shares_by(dropped_LBS, fifth_BS, FIFTHS),
        by_expert_LE=by_expert_LE,
        character=tuple(
            explained(units(x_BS).long(), units(ids_BS), label=CHARACTER, seed=seed) for x_BS in dropped_LBS
        ),
        late_positions=halves(position_BS, S),
        late_rows=halves(row_BS, batch_size),
        hardest=difference(*map(units, (mean_BS, fifth_BS == FIFTHS - 1, fifth_BS == 0))),
        cost=mean_where(units(cost_BS), units(layers_BS > 0)),
        at_once=tuple((layers_BS == n).float().mean().item() for n in range(L + 1)),
        at_once_by_chance=independent(dropped_LBS.double().mean(dim=(1, 2)).tolist()),
    )


def _places(nll_BS: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token (B, S): its position in the window, its row in the batch, and its fifth by loss, easiest first."""
    (B, S), device = nll_BS.shape, nll_BS.device
    row_B1 = (torch.arange(B, device=device) % batch_size)[:, None]
    return torch.arange(S, device=device).expand(B, S), row_B1.expand(B, S), fifths(nll_BS)
