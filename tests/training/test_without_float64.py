"""A device without float64, which is what Apple silicon is to torch: a whole run never asks it for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import folder_of
from small_models import short_run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from switch_lm.measure.evaluation import EvaluationTally, nanogpt_estimates
from switch_lm.measure.tallies import DropTally, ValidationTally
from switch_lm.model import devices
from switch_lm.model.losses import language_loss
from switch_lm.model.transformer import SwitchLM
from switch_lm.storage import checkpoint
from switch_lm.training.start import train


class NoFloat64(TorchDispatchMode):
    """Follows what is computed from weights, as if it lay on a device of its own until `cpu()`: no float64 there."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[int, Any] = {}  # storages, kept so that none gets the address of another
        self.widened: list[str] = []

    def move(self, *tensors: Tensor) -> None:
        self.there |= {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(x.untyped_storage()._cdata in self.there for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
            outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            self.move(*outputs)
            self.widened += [str(func) for x in outputs if x.dtype == torch.float64]
        return result


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> NoFloat64:
    mode, made = NoFloat64(), SwitchLM.__init__

    def moved(model: SwitchLM, *args: Any, **kwargs: Any) -> None:
        made(model, *args, **kwargs)
        mode.move(*model.parameters(), *model.buffers())

    def to_host(x: Tensor) -> Tensor:
        copy = x.detach().clone()
        mode.there.pop(copy.untyped_storage()._cdata, None)
        return copy

    monkeypatch.setattr(SwitchLM, "__init__", moved)
    monkeypatch.setattr(Tensor, "cpu", to_host)
    monkeypatch.setattr(devices, "sum_dtype", lambda device: torch.float32)
    return mode


def test_a_run_and_what_continues_one_take_no_float64_to_the_device(tmp_path: Path, mode: NoFloat64) -> None:
    config = short_run(tmp_path)
    config.logger.sample_length, config.health.every = 3, 1
    sizes: dict[str, Any] = {"batch_size": 2, "capacity_factor": 1.0, "precision": "fp32"}
    ids_BS = torch.arange(24).view(2, 12) % 9
    validation, drops, at_capacity = ValidationTally(), DropTally(num_layers=2), EvaluationTally()
    with mode:
        train(config)
        content = checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")
        content["at_capacity"]["sums"] = torch.zeros(5).double()  # as a GPU leaves it
        validation.load_state_dict(content["validation"])
        drops.load_state_dict(content["drops"])
        at_capacity.load_state_dict(content["at_capacity"])
        model = checkpoint.read_model(folder_of(config))[0]
        output = model(ids_BS)
        validation.add(language_loss(output.logits, ids_BS), ids_BS.numel(), output.routings)
        drops.add(output.routings)
        at_capacity.add(output, ids_BS)
        nanogpt_estimates(model, ids_BS.flatten(), num_draws=1, seed=0, **sizes)
    assert mode.widened == [] and mode.there
