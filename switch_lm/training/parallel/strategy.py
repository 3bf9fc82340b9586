"""How Lightning trains in one of several processes: it averages gradients, and sends nothing else."""

import os
import socket
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from switch_lm.training.parallel.group import Group


class Processes(ClusterEnvironment):
    """Processes that run already, on one machine, and are connected."""

    creates_processes_externally = True
    main_address, main_port = "127.0.0.1", 0  # nobody asks: the processes are connected before Lightning begins

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.rank, self.size = group.rank, group.size

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


class AveragedGradients(DDPStrategy):
    """Averages the gradients in the backward pass of a step's last micro-batch.

    With `find_unused_parameters`, which experts and routers without a gradient need, torch never makes its buckets of
    gradients again: the order of additions follows from the model alone, so that a resumed run has the same bits.

    What else Lightning would send is left out, since each process decides alike: the first process saves, draws and
    ends without the others.
    """

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, broadcast_buffers=False)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        with warnings.catch_warnings():
            # Routers learn the same in each process. Torch 2.13 warns, and its new name is not known to older ones.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            return super()._setup_model(model)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        pass

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision


def devices_of(device: str, group: Group) -> Any:
    """What Lightning calls them: as many as there are processes, on a GPU one for each."""
    return list(range(group.size)) if device == "cuda" else group.size


def store_in(folder: Path, size: int) -> Any:
    """Where `size` processes on this machine find each other: a file, so that no port is open to others."""
    return torch.distributed.FileStore(str(folder / "store"), size)  # type: ignore[attr-defined]


def connect(store: Any, group: Group, *, device: str, seconds: float) -> None:
    """Connects this process with the others, which do so too. `seconds`: how long each exchange may take.

    They talk through the loopback interface, unless somebody chose another one.
    """
    if loopback := {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback.pop())
    if device == "cuda":
        torch.cuda.set_device(group.rank)
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=store, rank=group.rank, world_size=group.size, timeout=timedelta(seconds=seconds),
    )  # fmt: skip
