"""Processes of one run that torchrun or srun started: what they say of themselves, and where they meet."""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from switch_lm.config.durations import seconds_of
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config
from switch_lm.storage.run_folder import TrainingError

FOREVER = 1e7  # seconds: the first process may take its time, and if it ends, so do the others
# What the first process tells the others: where their task is. torchrun's store outlives a restart of all of them.
FOLDER = f"switch_lm_folder_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
PORTS = range(61440, 65536)


class Outside(NamedTuple):
    """How this process was started: as number `rank` of `size`, of which `here` are on this machine."""

    program: str
    rank: int
    size: int
    here: int


def started_by(environment: Mapping[str, str] = os.environ) -> Outside | None:
    """None where neither torchrun nor srun started several processes. A batch script of SLURM is no step of srun."""
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, size = (int(environment.get(name, number)) for name, number in (("RANK", 0), ("WORLD_SIZE", 1)))
        return Outside("torchrun", rank, size, int(environment.get("LOCAL_WORLD_SIZE", size)))
    if "SLURM_STEP_ID" in environment and (size := int(environment.get("SLURM_NTASKS", 1))) > 1:
        machines = int(environment.get("SLURM_STEP_NUM_NODES", 1))
        return Outside("srun", int(environment["SLURM_PROCID"]), size, size if machines == 1 else 0)
    return None


def is_heard() -> bool:
    """Whether this process prints why it failed. Of torchrun's the first does; those of srun may be separate runs."""
    part = started_by()
    return part is None or part.rank == 0 or part.program == "srun"


def part_of(config: Config, *, in_sweep: bool) -> Outside | None:
    """This process's part in a run whose processes were started already; None: the run starts them, or needs none.

    ConfigError if they are not those that it asks for.
    """
    found, wanted = started_by(), config.trainer.processes
    if found is None or (wanted == 1 and (found.size == 1 or found.program == "srun")):
        return None
    problem = f"{found.program} started {found.size} processes"
    if wanted == 1 or in_sweep:
        command = f"python -m switch_lm.train {'-m ' if in_sweep else ''}trainer.processes={max(wanted, found.size)}"
        raise ConfigError(f"{problem}, but {'each job' if in_sweep else 'a run'} starts its own: use {command}")
    if found.size != wanted:
        raise ConfigError(
            f"trainer.processes={wanted}: {problem}; use trainer.processes={found.size}, or start {wanted}"
        )
    if found.here != found.size:
        raise ConfigError(f"{problem} on several machines, and a run has one: start all of them there")
    return found


def meet(found: Outside, config: Config) -> Any:
    """A store that all processes share until the first one ends. TrainingError if one of them does not come."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    job, step = (int(os.environ.get(f"SLURM_{name}_ID") or 0) for name in ("JOB", "STEP"))
    port = str(PORTS[(31 * job + step) % len(PORTS)])  # under srun nobody names one; two steps have two
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", port)
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself keeps the store
    seconds = timedelta(seconds=seconds_of(config.trainer.peer_timeout))
    try:
        store = TCPStore(address, int(port), found.size, found.rank == 0 and not by_agent, seconds)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise TrainingError(f"the processes that {found.program} started did not meet: {words}") from error
    if found.rank > 0:
        store.set_timeout(timedelta(seconds=FOREVER))  # the first one may take its time
    return store


def join(found: Outside, config: Config) -> None:
    """Takes part as a process other than the first, to the end of its work or of the first, and prints nothing."""
    from switch_lm.training.parallel.worker import take_part

    with suppress(RuntimeError, OSError, TrainingError):  # the first process has ended, and has said why
        folder = Path(meet(found, config).get(FOLDER).decode())
        take_part(folder, found.rank)
