"""Pictures of the routing for the boards: each expert's load during training, and the characters it gets."""

import math
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from switch_lm.config.schema import Config
from switch_lm.measure.metrics import SMALLEST, first_choice
from switch_lm.model import devices
from switch_lm.model.transformer import SwitchLM, evaluating
from switch_lm.pages.coloured_text import MOST_EXPERTS
from switch_lm.pages.document import HeatMap
from switch_lm.pages.expert_maps import atlas, shown, stacked
from switch_lm.text.windows import fixed_windows
from switch_lm.training.callbacks.base import Measurement, MicroBatch

MOST_COLUMNS = 200  # of the load over time
ATLAS_CHARACTERS = 4096  # read after each validation
LOAD_TAG, ATLAS_TAG = "routing/expert_load_over_time", "routing/layer_{:02d}_atlas"


class LoadHistory:
    """Every expert's load during training: the logged steps, added up in at most 200 columns of equal width."""

    def __init__(self, *, blocks: Sequence[int], num_experts: int, max_steps: int, log_every: int) -> None:
        self.blocks = blocks
        self.steps = log_every * max(1, math.ceil(max_steps // log_every / MOST_COLUMNS))  # of a column
        self.load_CLE = torch.zeros(math.ceil(max_steps / self.steps), len(blocks), num_experts, dtype=torch.long)

    def add(self, load_LE: Tensor, *, step: int) -> None:
        """`step`: how many are done, from 1 on."""
        self.load_CLE[(step - 1) // self.steps] += load_LE.cpu()

    def heat_map(self) -> HeatMap:
        """Blank where nothing was logged yet; a blank row between two layers."""
        load_CLE = self.load_CLE.double()
        share_CLE = load_CLE / load_CLE.mean(dim=2, keepdim=True).clamp(min=SMALLEST)
        share_CLE[load_CLE.sum(dim=(1, 2)).flip(0).cumsum(0).flip(0) == 0] = math.nan  # after the last step logged
        share_LEC = share_CLE.permute(1, 2, 0)
        num_experts, experts_L = load_CLE.shape[2], [spread(load_E) for load_E in load_CLE.sum(dim=0).tolist()]
        some = f" ({MOST_EXPERTS} of {num_experts:,}, from the busiest to the idlest)"
        shown_L = [share_EC[experts].tolist() for share_EC, experts in zip(share_LEC, experts_L, strict=True)]
        names, rows = stacked(shown_L, self.blocks, experts_L=experts_L)
        return HeatMap(
            name="load_over_time",
            title="Each expert's load over the training",
            alt="A row for each expert, a column for each stretch of training, the expert's load as colour.",
            x_label=f"training step (a column: {self.steps} steps)",
            y_label=f"layer · expert{some if num_experts > MOST_EXPERTS else ''}",
            value_label="load / mean load of the layer: 0 idle, 1 even, 2 twice as much or more; blank: still to come",
            x_names=tuple(str(i * self.steps) for i in range(len(load_CLE))),
            y_names=names,
            values=rows,
            low=0.0,
            high=2.0,
            centre=1.0,
        )


def spread(load_E: Sequence[float]) -> list[int]:
    """The experts of a layer to show: all, or of more than 64 so many, evenly from the busiest to the idlest."""
    num_experts, last = len(load_E), MOST_EXPERTS - 1
    if num_experts <= MOST_EXPERTS:
        return list(range(num_experts))
    ranking = sorted(range(num_experts), key=lambda e: -load_E[e])
    return [ranking[i * (num_experts - 1) // last] for i in range(MOST_EXPERTS)]


def shares_by_character(model: SwitchLM, ids_BS: Tensor) -> Tensor:
    """The share of each character's occurrences that each expert gets, with nothing dropped (L, E, V).

    NaN where a character does not occur. The shares of a character add up to the experts that it gets. Where that may
    be any number, one more row is the share that none gets.
    """
    with torch.inference_mode(), evaluating(model):
        routings = model(ids_BS, capacity_factor=None).routings
    ids_T, one = ids_BS.flatten(), devices.widened(torch.ones((), device=ids_BS.device))
    varies = any(routing.choices_per_token is None for routing in routings)
    count_LEV = one.new_zeros(len(routings), model.config.num_experts + varies, model.vocab_size)
    for count_EV, routing in zip(count_LEV, routings, strict=True):
        used_N = one if routing.used_N is None else routing.used_N.to(one.dtype)
        count_EV.index_put_((routing.expert_N, ids_T[routing.token_N]), used_N, accumulate=True)
        if varies:
            count_EV[-1] = torch.bincount(ids_T[first_choice(routing).number_T == 0], minlength=model.vocab_size)
    return count_LEV / torch.bincount(ids_T, minlength=model.vocab_size)


class RoutingPictures(Measurement):
    """Draws, after each validation, the load of the training so far and an atlas of each layer.

    The first shows the logged steps, as the scalars do. The atlas reads one fixed set of windows of the validation
    split, in float32 with nothing dropped. Neither draws a random number.
    """

    name = "routing_pictures"

    def __init__(self, validation_ids: Tensor, config: Config) -> None:
        model, self.log_every = config.model, config.logger.log_every
        self.num_layers, self.blocks = model.num_switch_layers, model.switch_blocks
        self.history = LoadHistory(
            blocks=self.blocks, num_experts=model.num_experts, max_steps=config.trainer.max_steps,
            log_every=self.log_every,
        )  # fmt: skip
        rows = max(1, ATLAS_CHARACTERS // model.context_length)
        self.ids_BS, _ = fixed_windows(validation_ids, context_length=model.context_length, num_windows=rows)

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        if self.num_layers and step % self.log_every == 0:
            for micro_batch in micro_batches:
                of_layers = micro_batch["sums"] or micro_batch["routings"]
                self.history.add(torch.stack([layer.load_E for layer in of_layers]), step=step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self.num_layers:
            return
        from switch_lm.pages.pictures import as_image  # matplotlib: a run without a validation does without

        step, characters = trainer.global_step, pl_module.vocabulary.characters
        with self.timed(pl_module, step):
            share_LEV = shares_by_character(pl_module.model, self.ids_BS.to(pl_module.device)).cpu()
            count_V = torch.bincount(self.ids_BS.flatten(), minlength=len(characters))
            places, num_experts = shown(count_V, characters), pl_module.model.config.num_experts
            load_LE = (share_LEV.nan_to_num() * count_V).sum(dim=2)[:, :num_experts].tolist()
            maps = {ATLAS_TAG.format(layer): atlas(share_EV, characters, places, load_E=load_E)
                    for layer, share_EV, load_E in zip(self.blocks, share_LEV, load_LE, strict=True)}  # fmt: skip
            for tag, heat_map in {LOAD_TAG: self.history.heat_map(), **maps}.items():
                pl_module.run_log.image(tag, as_image(heat_map), step)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"load_CLE": self.history.load_CLE.clone(), "steps": self.history.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.history.load_CLE, self.history.steps = state_dict["load_CLE"].cpu(), state_dict["steps"]
