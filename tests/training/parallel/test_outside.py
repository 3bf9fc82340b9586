"""Processes of one run that torchrun or srun started: who takes part, who is refused, and a run of two of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from copied_process import Done, run
from small_models import short_run

from switch_lm.config.keys import ConfigError
from switch_lm.training.boards.tensorboard import EVENTS
from switch_lm.training.parallel import watch
from switch_lm.training.parallel.outside import Outside, part_of

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "processes", "in_sweep", "expected"),
    [
        (TORCHRUN, 2, False, Outside("torchrun", 1, 2, 2)),
        (SRUN, 2, False, Outside("srun", 1, 2, 2)),
        (SRUN, 1, False, None),  # runs of their own
        (SRUN, 1, True, None),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 2, False, None),  # a step of one: it starts the other
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 2, False, None),  # a batch script, of which there is one
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, 1, False, None),
        (TORCHRUN, 1, False, "torchrun started 2 processes, but a run .*: use .*train trainer.processes=2$"),
        (TORCHRUN, 4, False, "trainer.processes=4: torchrun started 2 .*; use trainer.processes=2, or start 4$"),
        (SRUN, 4, False, "trainer.processes=4: srun started 2 processes; use trainer.processes=2, or start 4$"),
        (TORCHRUN | {"WORLD_SIZE": "1"}, 2, False, "trainer.processes=2: torchrun started 1 .*, or start 2$"),
        (SRUN, 2, True, "srun started 2 processes, but each job starts its own: use .* -m trainer.processes=2$"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}, 2, False, "torchrun started 2 processes on several machines"),
        (SRUN | {"SLURM_STEP_NUM_NODES": "2"}, 2, False, "srun started 2 processes on several machines"),
    ],
)
def test_processes_that_another_program_started_are_those_of_the_run_or_refused(
    environment: dict[str, str],
    processes: int,
    in_sweep: bool,
    expected: Outside | str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = short_run(tmp_path)
    config = replace(config, trainer=replace(config.trainer, processes=processes))
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=f"^{expected}"):
            part_of(config, in_sweep=in_sweep)
    else:
        assert part_of(config, in_sweep=in_sweep) == expected


def started(folder: Path, environment: dict[str, str], *, commands: int) -> list[Done]:
    """Commands side by side, as processes 0 and 1; or one, which starts the other."""
    keys = ["experiment=smoke", "trainer.max_steps=2", "trainer.val_every=2", "optim.warmup_steps=1"]
    keys += ["data.path=text.txt", "logger.sample_length=0", "trainer.device=cpu", "trainer.processes=2"]

    def one(rank: int) -> Done:
        ranks = {name: str(rank) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID")}
        environment_of_rank = os.environ | environment | ranks
        if commands > 1:
            return run("switch_lm.train", *keys, folder=folder, env=environment_of_rank)
        # No copy of a process that has torch: what torch itself prints is part of the question.
        command = [sys.executable, "-m", "switch_lm.train", *keys]
        return subprocess.run(command, cwd=folder, env=environment_of_rank, capture_output=True, text=True)

    with ThreadPoolExecutor(commands) as pool:
        return list(pool.map(one, range(commands)))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["torchrun", "srun", "itself"])
def test_two_processes_train_one_run_and_the_second_is_silent(program: str, tmp_path: Path) -> None:
    short_run(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    step = SRUN | {"SLURM_JOB_ID": str(os.getpid())}
    of_program = {"torchrun": TORCHRUN | port, "srun": step, "itself": {}}
    done = started(tmp_path, of_program[program], commands=1 if program == "itself" else 2)
    assert {one.returncode for one in done} == {0}, [one.stderr for one in done]
    assert program != "itself" or "reducer.cpp" not in done[0].stderr
    assert all((one.stdout, one.stderr) == ("", "") for one in done[1:])
    assert "2, each with 8 of 16 rows" in done[0].stdout
    (folder,) = (tmp_path / "outputs" / "runs").glob("*")
    assert len(list(folder.glob(EVENTS))) == 1
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 2 and result["hardware"]["processes"] == 2


def test_a_silent_process_is_said_to_be_silent_for_as_long_as_was_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two, process 2 beats; what is waited after an exchange that failed is less than the timeout."""
    monkeypatch.setattr(watch, "CAUSE_SECONDS", 0.0)
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.2)
    workers = watch.Workers(3, tmp_path, started=True, seconds=60.0)
    for rank in workers.ranks:
        workers.pulse.file(rank).write_text(f"10{rank}")
    beats = iter(range(1, 1000))
    monkeypatch.setattr(workers.pulse, "of", lambda rank: next(beats) if rank == 2 else 0)
    silent = r"^process 1 \(PID 101\) did not answer for"
    with pytest.raises(watch.LostProcessError, match=rf"{silent} 0\.2 s after an exchange that failed"):
        workers.look_for_the_cause(RuntimeError("gloo"))
    workers.pulse.silent[1] = 60.0
    with pytest.raises(watch.LostProcessError, match=rf"{silent} 60 s \(trainer\.peer_timeout\)"):
        workers.check()
