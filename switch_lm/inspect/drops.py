"""Who finds no place at the capacity of training, and what each token's own drop costs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.inspect.estimates import difference, mean_where, nats
from switch_lm.inspect.information import Explained, explained
from switch_lm.inspect.labels import CHARACTER
from switch_lm.report.statistics import Estimate

FIFTHS = 5


@dataclass(frozen=True)
class Drops:
    """Tokens of which an expert selected did not compute; rerouted and passed through count as well.

    Shares are NaN where there is no token. `Q`: fifths of the tokens by their loss with nothing dropped, easy first.
    """

    capacity_factor: float
    batch_size: int
    dropped_LBS: Tensor
    by_character_LV: Tensor
    by_position_LS: Tensor
    by_row_LR: Tensor  # row of its batch
    by_difficulty_LQ: Tensor
    character: tuple[Explained, ...]  # of each layer, what the character explains of being dropped
    late_positions: Estimate | None  # share of the later half of a window less that of the earlier; mean over layers
    late_rows: Estimate | None  # the same of a batch's rows
    hardest: Estimate | None  # the hardest fifth less the easiest
    cost: Estimate | None  # nats that their own drops add to the loss of tokens dropped in any layer, mean
    at_once: tuple[float, ...]  # share of tokens dropped in exactly 0, 1, .. layers
    at_once_by_chance: tuple[float, ...]  # if layers dropped independently

    @property
    def share_L(self) -> list[float]:
        """Of each layer's tokens."""
        return self.dropped_LBS.float().mean(dim=(1, 2)).tolist()

    def findings(self) -> list[str]:
        """Also where no difference was found, and of a model that drops nothing."""
        shares = ", ".join(f"{share:.1%}" for share in self.share_L)
        found = [
            f"At capacity factor {self.capacity_factor:g}, {self.batch_size} rows a batch, drops by layer: {shares}."
        ]
        if self.cost is None:
            return [*found, "No token of the probe was dropped."]
        found += [
            _compared("the later half of a window", "the earlier one", self.late_positions),
            _compared("the later half of a batch's rows", "the earlier one", self.late_rows),
            _compared("the fifth that is hardest to predict", "the easiest", self.hardest),
        ]
        known = [f"layer {layer} {one.share:.1%} (chance {one.chance:.1%})" for layer, one in enumerate(self.character)
                 if one.beyond_chance]  # fmt: skip
        found.append(
            f"The character explains who is dropped: {', '.join(known)}." if known
            else "The character explains no more of who is dropped than by chance."
        )  # fmt: skip
        settled = "" if self.cost.resolved else ", which is no difference that this probe can tell from 0"
        found.append(f"Its own drops change a dropped token's loss by {nats(self.cost)}{settled}.")
        several, by_chance = sum(self.at_once[2:]), sum(self.at_once_by_chance[2:])
        found.append(
            f"{several:.2%} of tokens are dropped in several layers ({by_chance:.2%} if layers were independent)."
        )
        return found


def summary(
    dropped_LBS: Tensor,
    cost_BS: Tensor,
    *,
    ids_BS: Tensor,
    nll_BS: Tensor,
    num_characters: int,
    capacity_factor: float,
    batch_size: int,
    seed: int = 0,
) -> Drops:
    """`Drops` from what was dropped (L, B, S) and what its own drops add to each token's loss (B, S), in nats.

    `nll_BS` is the difficulty.
    """
    (L, B, S), device = dropped_LBS.shape, dropped_LBS.device
    mean_BS, layers_BS = dropped_LBS.float().mean(dim=0), dropped_LBS.sum(dim=0)
    position_BS = torch.arange(S, device=device).expand(B, S)
    row_BS = (torch.arange(B, device=device) % batch_size)[:, None].expand(B, S)
    fifth_BS = (nll_BS.flatten().argsort(stable=True).argsort() * FIFTHS // nll_BS.numel()).view(B, S)

    def halves(place_BS: Tensor, size: int, rows: int) -> Estimate | None:
        late_BS, early_BS = place_BS >= (size + 1) // 2, place_BS < size // 2
        return difference(*(x_BS.reshape(rows, -1) for x_BS in (mean_BS, late_BS, early_BS)))

    share = _by_label(dropped_LBS)
    return Drops(
        capacity_factor,
        batch_size,
        dropped_LBS,
        by_character_LV=share(ids_BS, num_characters),
        by_position_LS=share(position_BS, S),
        by_row_LR=share(row_BS, batch_size),
        by_difficulty_LQ=share(fifth_BS, FIFTHS),
        character=tuple(
            explained(dropped_BS.flatten().long(), ids_BS.flatten(), label=CHARACTER, seed=seed)
            for dropped_BS in dropped_LBS
        ),
        late_positions=halves(position_BS, S, B),
        late_rows=halves(row_BS, batch_size, B // batch_size),  # rows of a batch share their places
        hardest=difference(mean_BS, fifth_BS == FIFTHS - 1, fifth_BS == 0),
        cost=mean_where(cost_BS, layers_BS > 0),
        at_once=tuple((layers_BS == n).float().mean().item() for n in range(L + 1)),
        at_once_by_chance=independent(dropped_LBS.double().mean(dim=(1, 2)).tolist()),
    )


def independent(share_L: list[float]) -> tuple[float, ...]:
    """The probabilities that exactly 0, 1, .. of independent events happen."""
    probability = [1.0]
    for share in share_L:
        here, one_more = [p * (1 - share) for p in probability] + [0.0], [0.0] + [p * share for p in probability]
        probability = [a + b for a, b in zip(here, one_more, strict=True)]
    return tuple(probability)


def _by_label(dropped_LBS: Tensor) -> Callable[[Tensor, int], Tensor]:
    def share(label_BS: Tensor, size: int) -> Tensor:
        label_T = label_BS.reshape(-1)
        count_N = torch.bincount(label_T, minlength=size).double()
        return torch.stack(
            [torch.bincount(label_T, x_BS.flatten().double(), minlength=size) / count_N for x_BS in dropped_LBS]
        )

    return share


def _compared(one: str, other: str, found: Estimate | None) -> str:
    if found is None:
        return f"{one.capitalize()} could not be compared with {other}: the probe is too small."
    if found.low is None or found.high is None:
        return f"Whether {one} is dropped more often than {other} can not be told from one batch."
    if not found.resolved:
        interval = f"{found.mean:+.2%} of tokens, 95 % interval {found.low:+.2%} to {found.high:+.2%}"
        return f"Between {one} and {other} no difference shows ({interval})."
    often = "more" if found.mean > 0 else "less"
    return f"{one.capitalize()} is dropped {often} often than {other}: {found.mean:+.2%} of tokens."
