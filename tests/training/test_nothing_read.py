"""A training step as a GPU takes it reads nothing from the device: not in forward, backward, clipping or optimizer.

It runs on a CPU, and `devices` is patched to say that this is none. A GPU's own test is in tests/gpu.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from other_routers import ChosenOptions
from small_models import NOISE, parts_of, short_run
from some_steps import train_steps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import switch_lm
from switch_lm.model import devices
from switch_lm.optim.options import AdamWOptions, MuonOptions, OptimOptions
from switch_lm.routers.options import BalanceOptions

PACKAGE = Path(switch_lm.__file__).parent
# What copies to the host, or waits there for a size. An index of type bool is counted there, too.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class NotesReads(TorchDispatchMode):
    """Adds each read to `reads`, with the line of ours that made it."""

    def __init__(self, reads: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = reads

    def note(self, name: str) -> None:
        frames = [one for one in traceback.extract_stack() if one.filename.startswith(str(PACKAGE))]
        self.reads.add(f"{name}: {frames[-1].filename}:{frames[-1].lineno}" if frames else name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in READS or by_mask:
            self.note(name)
        return func(*args, **kwargs or {})


@contextmanager
def noting(reads: set[str]) -> Iterator[None]:
    """Tensor.tolist, cpu and numpy pass by the dispatcher, or do nothing on a CPU."""
    with NotesReads(reads) as mode, pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "cpu", "numpy"):
            patch.setattr(
                Tensor, name, lambda tensor, name=name: mode.note(name) or getattr(super(Tensor, tensor), name)()
            )
        yield


@pytest.mark.parametrize(
    "read",
    [
        float, bool, Tensor.nonzero, Tensor.unique, methodcaller("item"), methodcaller("tolist"), methodcaller("cpu"),
        methodcaller("numpy"), lambda x: x[x > 0], lambda x: x.masked_select(x > 0), lambda x: torch.where(x > 0),
    ],
)  # fmt: skip
def test_each_kind_of_read_is_noted(read: Callable[[Tensor], object]) -> None:
    reads, one = set[str](), torch.ones(1)
    with noting(reads):
        one.add(1).topk(1).indices.sort()
    assert not reads
    with noting(reads):
        read(one)
    assert len(reads) == 1


KINDS: dict[str, dict[str, Any]] = {
    "switch": {},
    "every noise": NOISE,
    "two choices by choice": {"top_k": 2, "queue_order": "choice", "renormalize_gates": True},
    "by row, passed through": {"capacity_group": "sequence", "overflow": "passthrough"},
    "rerouted by probability": {"overflow": "reroute", "drop_order": "probability"},
    "sign": {"balance": BalanceOptions("sign"), "shared_expert": True, "random_drop_rate": 0.1},
    "a list": {"router": ChosenOptions(jitter=0.0)},
    "dense": {"switch_every": 0},
    "dropless, in groups": {"capacity_factor": None},
    "dropless, two choices, in groups": {"capacity_factor": None, "top_k": 2},
    "a list with unused entries, in groups": {"capacity_factor": None, "router": ChosenOptions(jitter=0.0)},
}


@pytest.mark.parametrize("optim", [MuonOptions(), AdamWOptions()], ids=lambda optim: optim.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_as_a_gpu_takes_it_reads_nothing(
    kind: str, optim: OptimOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped = kind.endswith("in groups")
    monkeypatch.setattr(devices, "is_cpu", lambda device: False)
    monkeypatch.setattr(devices, "multiplies_groups", lambda device, dtype: grouped)
    changes = dict(KINDS[kind])
    router = changes.pop("router", None)
    parts = parts_of(**changes) | ({} if router is None else {"router": router})
    config = replace(short_run(tmp_path), **parts, optim=optim, z_loss=0.001, importance=0.01)
    config.trainer = replace(config.trainer, precision="bf16", max_steps=99, val_every=99, accumulate=2)
    config.logger.log_every = 99
    reads = set[str]()
    with ExitStack() as noted:
        train_steps(config, 3, start=lambda _: noted.enter_context(noting(reads)), end=lambda _: noted.close())
    assert reads == set()
