"""The typed schema of a configuration: one dataclass for each folder of configs/."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from switch_lm.config.durations import A_TIME, seconds_of
from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import FILLED, NAME, Key, at_least, key, keys_of, one_of, within
from switch_lm.model.config import ModelConfig
from switch_lm.optim.options import MuonOptions, OptimOptions
from switch_lm.routers.options import BalanceOptions, RouterOptions, SwitchOptions

MOST_EXPERTS = 64  # of a layer with a curve for each: thousands of curves take a fifth of the time


@dataclass
class DataConfig:
    path: str | None = key(
        None,
        "A text file to train on, in UTF-8: a regular file, not a stream such as <(cat a b). "
        "Byte order marks are left out; another encoding is refused with the command that converts it. "
        "null: data.text, or a file that the environment variable SWITCH_LM_DATA names in place of Tiny Shakespeare.",
        FILLED,
        path=True,
    )
    text: str = key(
        "tiny_shakespeare",
        "Without a path: tiny_shakespeare (1,115,394 characters), or plays: 29 more plays before it, so 4.6 times the "
        "text to train on and the same to validate.",
        one_of("tiny_shakespeare", "plays"),
    )
    split: str = key(
        "standard",
        "What is validated: standard (the last 111,540 characters of Tiny Shakespeare; of any other text its last "
        "10%), tuning (the last 5% of what standard trains on, so that nothing is chosen by the standard text), "
        "by_play (hold_out), within_play (trains on the first four fifths of hold_out and validates on the last "
        "fifth), without_histories (as standard, which trains on no history then), or scattered (a tenth of each "
        "play). The last four need a text of plays.",
        one_of("standard", "tuning", "by_play", "within_play", "without_histories", "scattered"),
    )
    hold_out: str | None = key(None, "The play that split=by_play or within_play validates, such as macbeth.", FILLED)
    unused_characters: str = key(
        "drop",
        "With init_from: what becomes of characters of that run that this text lacks. drop: the model knows those of "
        "the text alone; keep: it keeps the others, too.",
        one_of("drop", "keep"),
    )
    dir: str = key("data", "Where these texts are kept.", FILLED, changes_result=False, path=True)
    batch_size: int = key(
        32,
        "Windows of model.context_length characters in a (micro-)batch, those of all processes.",
        at_least(1),
    )


@dataclass
class TrainerConfig:
    max_steps: int = key(1800, "Optimizer steps of the run.", at_least(1))
    accumulate: int = key(1, "Micro-batches added up for one step.", at_least(1))
    val_every: int = key(
        300,
        "Steps between validations on the whole split; the last step is always validated.",
        at_least(1),
    )
    checkpoint_every: int = key(
        100,
        "Steps between two writes of checkpoints/last.ckpt (also written after each validation).",
        at_least(1),
        changes_result=False,
    )
    keep_best: int = key(
        1,
        "How many of the best checkpoints stay: best.ckpt and, if more than one, each by its step (step_000300.ckpt).",
        at_least(1),
    )
    device: str = key(
        "auto",
        "auto (a GPU if there is one), cpu, cuda or mps (Apple silicon; experimental, never chosen by auto).",
        one_of("auto", "cpu", "cuda", "mps"),
    )
    precision: str = key(
        "auto",
        "auto (bf16 only where the hardware does it fast), bf16 or fp32.",
        one_of("auto", "bf16", "fp32"),
    )
    compile: str = key(
        "auto",
        "auto (if a compiler is there and the run long enough to earn it back), true or false. A compiler that fails "
        "does not end the run.",
        one_of("auto", "true", "false"),
    )
    cuda_graph: bool = key(
        True,
        "Whether a GPU gets the forward and backward pass of a step as one recording, instead of kernel by kernel. "
        "What cannot be recorded, such as a router that reads from the GPU, does not end the run.",
        changes_result=False,
    )
    threads: int | None = key(
        None,
        "CPU threads. null: as many as the cores that affinity and cgroup quotas leave, or in a sweep whose jobs run "
        "side by side each job's share of them.",
        at_least(1),
        changes_result=False,
    )
    max_time: str | None = key(
        None,
        "Stop softly after this long (20m, or hours:minutes:seconds: 00:20:00), with a checkpoint and the line to "
        "continue with. Each start begins the count again. null: never.",
        A_TIME,
        changes_result=False,
    )
    processes: int = key(
        1,
        "How many processes train the run, each on as many rows of data.batch_size and its share of the threads. They "
        "have the numbers of one, but for noise (dropout, jitter), of which each draws its own.",
        at_least(1),
        changes_result=False,
    )
    peer_timeout: str = key(
        "60s",
        "With several processes: how long to wait for one that hangs, before the run ends with its name.",
        A_TIME,
        changes_result=False,
    )
    budget: str | None = key(
        None,
        "About how long the command may take here (5m, 1h30m, 00:05:00): a few steps are timed, and max_steps is "
        "chosen, at most the configured one, with val_every and optim.warmup_steps to match. The run stores these "
        "keys, not the budget. null: the steps as configured.",
        A_TIME,
        changes_result=False,
    )

    def validates(self, step: int) -> bool:
        """Whether a validation follows step number `step` (from 1)."""
        return step % self.val_every == 0 or step == self.max_steps

    def max_seconds(self) -> float:
        """`max_time` in seconds; infinity for null."""
        return math.inf if self.max_time is None else seconds_of(self.max_time)


@dataclass
class LoggerConfig:
    boards: dict[str, Any] = key(  # noqa: RUF009  it makes a field
        {"tensorboard": {}},
        "Where figures go beside metrics.jsonl, each board with its options; logger=NAME or logger=[A,B] fills it.",
        changes_result=False,
    )
    log_every: int = key(10, "Steps between two points of a training curve.", at_least(1), changes_result=False)
    per_expert: bool | None = key(
        None,
        "Whether each expert has its own training curve. false: five quantiles per layer (min, 5%, median, 95%, "
        f"max). null: true up to {MOST_EXPERTS} experts per layer.",
        changes_result=False,
    )
    sample_prompt: str = key("\n", "What the sample after each validation continues.", changes_result=False)
    sample_length: int = key(300, "Its length in characters; 0: no sample.", at_least(0), changes_result=False)
    progress: str = key(
        "auto",
        "auto (a bar on a terminal, lines elsewhere), bar, lines or none.",
        one_of("auto", "bar", "lines", "none"),
        changes_result=False,
    )

    def logs_each(self, num_experts: int) -> bool:
        """Whether each of so many experts has curves of its own."""
        return num_experts <= MOST_EXPERTS if self.per_expert is None else self.per_expert


@dataclass
class HealthConfig:
    every: int = key(
        50,
        "Steps between two checks of every router, apart from training, on up to 512 characters of its text; 0: never.",
        at_least(0),
        changes_result=False,
    )
    max_share: float = key(
        0.75,
        "A router has collapsed if one expert gets more than this share of the characters, or if as large a share of "
        "the experts gets none, ...",
        within(0, 1),
        changes_result=False,
    )
    checks: int = key(
        3,
        "... in this many checks in a row; it is dead if in as many the language loss has no gradient on it.",
        at_least(1),
        changes_result=False,
    )


@dataclass
class Config:
    router: RouterOptions = field(default_factory=SwitchOptions)
    balance: BalanceOptions = field(default_factory=BalanceOptions)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimOptions = field(default_factory=MuonOptions)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    alpha: float = key(
        0.01,
        "Weight of the load balancing loss: total = language loss + alpha * balance loss (Switch Transformers, eq. 4).",
        within(0, 1e6),
    )
    z_loss: float = key(
        0.0,
        "Weight of the router z loss, which keeps its logits small (ST-MoE, eq. 5; they use 0.001).",
        within(0, 1e6),
    )
    importance: float = key(
        0.0,
        "Weight of the importance loss: squared coefficient of variation of the experts' gates (Shazeer et al. "
        "2017, eq. 8).",
        within(0, 1e6),
    )
    balance_over: str = key(
        "global",
        "Which tokens the balance and the importance loss count together: global (a micro-batch of all processes), "
        "micro_batch (each process its own, the paper's rule per core), sequence (each row its own) or step (for f all "
        "micro-batches of a step, which a first pass counts: a third more time).",
        one_of("global", "micro_batch", "sequence", "step"),
    )
    router_alarm: str = key(
        "warn",
        "What a dead or collapsed router does: warn (once, and training continues) or error (training ends).",
        one_of("warn", "error"),
        changes_result=False,
    )
    seed: int = key(
        0,
        "Everything random follows from it: weights, batches, router jitter, dropout.",
        within(0, 2**63 - 1),
        short="seed",
        implied=None,  # of a run whose seed is not known none is guessed
    )
    name: str | None = key(
        None,
        "Name of the run's folder under outputs/runs, or of the sweep's. null: what varies, such as "
        "cap0.5_seed1, with a number if it is taken; of a sweep, its overrides.",
        NAME,
        changes_result=False,
    )
    resume: str | None = key(
        None,
        "null: a new run. auto: continue the newest unfinished run of an equal configuration. NAME: continue that run.",
        NAME,
        changes_result=False,
    )
    init_from: str | None = key(
        None,
        "A trained run of the same sizes (name, folder or checkpoint) whose weights this one starts from, on its text "
        "or another: dense from dense, Switch from Switch, Switch from dense (Sparse Upcycling).",
        FILLED,
        path=True,
        short="from_",
    )
    train_only: str = key(
        "all",
        "Which weights are trained: all, those of the routers or of the experts; the others stay as they are.",
        one_of("all", "router", "experts"),
        short="only_",
    )
    outputs: str = key("outputs", "Where runs and sweeps are written.", FILLED, changes_result=False, path=True)

    @property
    def rows_per_process(self) -> int:
        """Of a micro-batch."""
        return self.data.batch_size // self.trainer.processes

    @property
    def balance_weight(self) -> float:
        """What the balance loss is multiplied by in the total."""
        return self.alpha if self.balance.adds_loss else 0.0


def every_key() -> dict[str, Key]:
    """Every key by its dotted name: those of the default families, then those that only other families have."""
    keys = keys_of(Config)
    for group, families in FAMILIES.items():
        for one in families.values():
            keys |= {name: key for name, key in keys_of(one.options, f"{group}.").items() if name not in keys}
    return keys


KEYS = every_key()  # to which `load_plugins` adds those of plugins


def keys_of_choice(names: Mapping[str, str | None]) -> dict[str, Key]:
    """The keys of a configuration that chooses these families, by group; an unknown one has none."""
    keys = {name: key for name, key in KEYS.items() if name.partition(".")[0] not in FAMILIES}
    for group, families in FAMILIES.items():
        if (name := names.get(group)) in families:
            keys |= keys_of(families[name].options, f"{group}.")
    return keys


def keys_in(config: Config) -> dict[str, Key]:
    """The keys of this configuration."""
    return keys_of_choice({group: getattr(config, group).name for group in FAMILIES})


def changes_result(name: str) -> bool:
    """Whether what is computed may depend on the key of this name."""
    return not name.startswith("logger.boards.") and (name not in KEYS or KEYS[name].changes_result)
