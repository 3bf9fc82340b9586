"""Pictures of the routing for the boards: each expert's load and drops in training, and the characters it gets."""

import math
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional

from switch_lm.config.schema import Config
from switch_lm.measure.metrics import SMALLEST, first_choice
from switch_lm.model import devices
from switch_lm.model.transformer import SwitchLM, evaluating
from switch_lm.pages.coloured_text import MOST_EXPERTS
from switch_lm.pages.document import HeatMap
from switch_lm.pages.expert_maps import atlas, shown
from switch_lm.routers.routing import Routing
from switch_lm.text.windows import fixed_windows
from switch_lm.training.callbacks.base import Measurement, MicroBatch

MOST_COLUMNS = 200  # of the maps over time
ATLAS_CHARACTERS = 4096  # read after each validation
# TensorBoard shows them in the order of their tags.
LOAD_TAG, DROPPED_TAG = "routing/load/layer_{:02d}", "routing/share_dropped/layer_{:02d}"
ATLAS_TAG, MARGIN_TAG = "routing/which_characters/layer_{:02d}", "routing/margin/layer_{:02d}"
MARGINS = 20  # bars of the histogram


class LoadHistory:
    """Every expert's load and drops in training: the logged steps, added up in at most 200 columns of equal width."""

    def __init__(self, *, blocks: Sequence[int], num_experts: int, max_steps: int, log_every: int) -> None:
        self.blocks, self.max_steps = blocks, max_steps
        self.steps = log_every * max(1, math.ceil(max_steps // log_every / MOST_COLUMNS))  # of a column
        self.load_CLE = torch.zeros(math.ceil(max_steps / self.steps), len(blocks), num_experts, dtype=torch.long)
        self.dropped_CLE = torch.zeros_like(self.load_CLE)

    def restore(self, load_CLE: Tensor, dropped_CLE: Tensor, steps: int) -> None:
        """Continues the columns of an earlier start of the run, whose goal may have been nearer."""
        columns = math.ceil(self.max_steps / steps)
        merged = math.ceil(columns / (2 * MOST_COLUMNS))
        missing = math.ceil(columns / merged) * merged - len(load_CLE)
        self.load_CLE, self.dropped_CLE = (
            functional.pad(sums_CLE.cpu(), (0, 0, 0, 0, 0, missing)).unflatten(0, (-1, merged)).sum(1)
            for sums_CLE in (load_CLE, dropped_CLE)
        )
        self.steps = merged * steps

    def add(self, load_LE: Tensor, dropped_LE: Tensor | None = None, *, step: int) -> None:
        """`step`: how many are done, from 1 on. `dropped_LE`: None where nothing can be dropped."""
        column = (step - 1) // self.steps
        self.load_CLE[column] += load_LE.cpu()
        if dropped_LE is not None:
            self.dropped_CLE[column] += dropped_LE.cpu()

    def load(self, layer: int) -> HeatMap:
        """Of one Switch layer, counted from 0. Blank where nothing was logged yet."""
        load_CE = self.load_CLE[:, layer].double()
        return self._over_time(
            layer,
            load_CE / load_CE.mean(dim=1, keepdim=True).clamp(min=SMALLEST),
            title="load of each expert",
            value_label="load / mean: 0 idle, 1 even, 2 or more",
            high=2.0,
            centre=1.0,
        )

    def dropped(self, layer: int) -> HeatMap:
        """The share of each expert's choices that was dropped."""
        return self._over_time(
            layer,
            self.dropped_CLE[:, layer] / self.load_CLE[:, layer].clamp(min=1),
            title="share dropped by each expert",
            value_label="share of an expert's choices that is dropped",
            high=1.0,
        )

    def _over_time(self, layer: int, value_CE: Tensor, *, title: str, **scale: Any) -> HeatMap:
        load_CLE, num_experts = self.load_CLE, self.load_CLE.shape[2]
        blank_C = load_CLE.sum(dim=(1, 2)).flip(0).cumsum(0).flip(0) == 0  # after the last step logged
        experts = spread(load_CLE[:, layer].sum(dim=0).tolist())
        some = f" ({MOST_EXPERTS} of {num_experts:,}, from the busiest to the idlest)"
        return HeatMap(
            name="over_time",
            title=f"Layer {self.blocks[layer]:02d}: {title}",
            alt="A row for each expert, a column for each stretch of training.",
            x_label=f"training step (a column: {self.steps} steps; blank: to come)",
            y_label=f"expert{some if num_experts > MOST_EXPERTS else ''}",
            x_names=tuple(str(i * self.steps) for i in range(len(load_CLE))),
            y_names=tuple(f"{expert:02d}" for expert in experts),
            values=tuple(map(tuple, value_CE.masked_fill(blank_C[:, None], math.nan)[:, experts].T.tolist())),
            low=0.0,
            **scale,
        )


def spread(load_E: Sequence[float]) -> list[int]:
    """The experts of a layer to show: all, or of more than 64 so many, evenly from the busiest to the idlest."""
    num_experts, last = len(load_E), MOST_EXPERTS - 1
    if num_experts <= MOST_EXPERTS:
        return list(range(num_experts))
    ranking = sorted(range(num_experts), key=lambda e: -load_E[e])
    return [ranking[i * (num_experts - 1) // last] for i in range(MOST_EXPERTS)]


def dropless(model: SwitchLM, ids_BS: Tensor) -> tuple[Routing, ...]:
    """The routings of a forward pass with nothing dropped or random in it."""
    with torch.inference_mode(), evaluating(model):
        return model(ids_BS, capacity_factor=None).routings


def margins(routing: Routing) -> Tensor:
    """p1 - p2 for each token, of its two most probable experts (T,): near 0 the choice is a toss-up."""
    return -routing.probs_TE.topk(2).values.diff(dim=1).squeeze(1)


def shares_by_character(routings: Sequence[Routing], ids_BS: Tensor, *, vocab_size: int) -> Tensor:
    """The share of each character's occurrences that each expert gets (L, E, V), by the routings of `ids_BS`.

    NaN where a character does not occur. The shares of a character add up to the experts that it gets. Where that may
    be any number, one more row is the share that none gets.
    """
    ids_T, one = ids_BS.flatten(), devices.widened(torch.ones((), device=ids_BS.device))
    varies = any(routing.choices_per_token is None for routing in routings)
    count_LEV = one.new_zeros(len(routings), routings[0].num_experts + varies, vocab_size)
    for count_EV, routing in zip(count_LEV, routings, strict=True):
        used_N = one if routing.used_N is None else routing.used_N.to(one.dtype)
        count_EV.index_put_((routing.expert_N, ids_T[routing.token_N]), used_N, accumulate=True)
        if varies:
            count_EV[-1] = torch.bincount(ids_T[first_choice(routing).number_T == 0], minlength=vocab_size)
    return count_LEV / torch.bincount(ids_T, minlength=vocab_size)


class RoutingPictures(Measurement):
    """Draws, after each validation, the loads and drops of each layer so far, its atlas and its router's margins.

    The first two show the logged steps, as the scalars do. The others come from one fixed set of windows of the
    validation split, in float32 with nothing dropped. None draws a random number.
    """

    name = "routing_pictures"

    def __init__(self, validation_ids: Tensor, config: Config) -> None:
        model, self.log_every = config.model, config.logger.log_every
        self.num_layers, self.blocks = model.num_switch_layers, model.switch_blocks
        self.limited = config.router.limit(model.capacity_factor, training=True) is not None
        self.history = LoadHistory(
            blocks=self.blocks, num_experts=model.num_experts, max_steps=config.trainer.max_steps,
            log_every=self.log_every,
        )  # fmt: skip
        rows = max(1, ATLAS_CHARACTERS // model.context_length)
        self.ids_BS, _ = fixed_windows(validation_ids, context_length=model.context_length, num_windows=rows)

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        if self.num_layers and step % self.log_every == 0:
            for micro_batch in micro_batches:
                layers = micro_batch["sums"] or micro_batch["routings"]
                dropped_LE = torch.stack([layer.dropped_E for layer in layers]) if self.limited else None
                self.history.add(torch.stack([layer.load_E for layer in layers]), dropped_LE, step=step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self.num_layers:
            return
        from switch_lm.pages.pictures import as_image  # matplotlib: a run without a validation does without

        step, characters, log = trainer.global_step, pl_module.vocabulary.characters, pl_module.run_log
        with self.timed(pl_module):
            ids_BS = self.ids_BS.to(pl_module.device)
            routings = dropless(pl_module.model, ids_BS)
            share_LEV = shares_by_character(routings, ids_BS, vocab_size=len(characters)).cpu()
            count_V = torch.bincount(self.ids_BS.flatten(), minlength=len(characters))
            places, num_experts = shown(count_V, characters), routings[0].num_experts
            load_LE = (share_LEV.nan_to_num() * count_V).sum(dim=2)[:, :num_experts].tolist()
            for layer, (block, routing) in enumerate(zip(self.blocks, routings, strict=True)):
                title = f"Layer {block:02d}: which expert gets which character"
                maps = {
                    LOAD_TAG: self.history.load(layer),
                    **({DROPPED_TAG: self.history.dropped(layer)} if self.limited else {}),
                    ATLAS_TAG: atlas(share_LEV[layer], characters, places, load_E=load_LE[layer], title=title),
                }
                for tag, heat_map in maps.items():
                    log.image(tag.format(block), as_image(heat_map), step)
                if num_experts > 1:
                    count = margins(routing).float().cpu().histc(MARGINS, 0.0, 1.0).long().tolist()
                    log.histogram(MARGIN_TAG.format(block), count, step, low=0.0, high=1.0)

    def state_dict(self) -> dict[str, Any]:
        history = self.history
        sums = {"load_CLE": history.load_CLE.clone(), "dropped_CLE": history.dropped_CLE.clone()}
        return super().state_dict() | sums | {"steps": history.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        load_CLE = state_dict["load_CLE"]
        dropped_CLE = state_dict.get("dropped_CLE", torch.zeros_like(load_CLE))  # older files have none
        self.history.restore(load_CLE, dropped_CLE, state_dict["steps"])
