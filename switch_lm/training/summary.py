"""What the console says of a run: the plan before training, the result after it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from switch_lm.config.paths import interpreter
from switch_lm.config.rules import flatten, show
from switch_lm.config.schema import KEYS, Config
from switch_lm.measure.ledger import ledger_in_words
from switch_lm.optim.schedule import legs_in_words
from switch_lm.pages.characters import harmless
from switch_lm.storage import metrics
from switch_lm.storage.metrics import METRICS
from switch_lm.storage.runs import BEST, CHECKPOINTS, LAST, OUTPUTS
from switch_lm.text.characters import shell_word
from switch_lm.text.corpus import TINY_SHAKESPEARE
from switch_lm.text.plays import ADDED, LEFT_OUT
from switch_lm.text.splits import VALIDATED
from switch_lm.training.baselines import in_words
from switch_lm.training.hardware import Hardware
from switch_lm.training.terminal_plot import plot

STEPS = ("trainer.max_steps", "trainer.val_every", "trainer.accumulate")
ROUTED = (  # keys that a dense model does not have
    "model.num_experts", "model.capacity_factor", "model.eval_capacity_factor", "model.switch_every",
    "model.switch_layers", "model.expert_dropout", "model.shared_expert", "optim.router_lr",
    "optim.expert_update_every",
)  # fmt: skip
OF_THIS_RUN = ("optim.name", "optim.legs", "optim.on_resume", "model.upcycle_noise", "data.unused_characters")


def print_plan(
    console: Console,
    config: Config,
    hardware: Hardware,
    *,
    run: Path,
    source: str,
    sizes: tuple[int, int],
    vocab: int,
    added: Mapping[str, str] | None = None,
) -> None:
    """What will be trained, on what, where to. `sizes`: characters of the training and validation split.

    `added`: rows that only some runs have.
    """
    model, tokens = config.model, config.data.batch_size * config.model.context_length
    total, active = (count(vocab, config.router) for count in (model.num_params, model.num_active_params))
    steps, passes = config.trainer.max_steps, config.trainer.max_steps * config.trainer.accumulate * tokens / sizes[0]
    limit = config.router.limit(model.capacity_factor, training=True)
    capacity = "no capacity limit (dropless)" if limit is None else f"capacity factor {limit:g}"
    if limit is None and model.capacity_factor is not None:
        capacity = f"no capacity: model.capacity_factor does nothing to router={config.router.name}"
    layers = f"{model.num_switch_layers} of {model.num_layers} layers"
    rows = {
        "model": f"{model.num_layers} layers, width {model.d_model}, d_ff {model.d_ff}, context {model.context_length}",
        "experts": f"{model.num_experts} in {layers}, {capacity}" if model.num_switch_layers else "none: a dense model",
        "router": _router(config) if model.num_switch_layers else "none",
        "parameters": f"{total:,} in all, {active:,} active for each token",
        **(added or {}),
        "computation": ledger_in_words(config, vocab),
        "data": f"{source}: {sizes[0]:,} characters to train on, {sizes[1]:,} to validate, {vocab} distinct",
        **_added(config, sizes[0]),
        "training": f"{steps:,} steps of {tokens * config.trainer.accumulate:,} characters ({passes:.1f} passes), "
        f"{config.optim.name}, alpha {config.alpha:g}, seed {config.seed}",
        **_legs(config),
        "machine": f"{hardware.device} ({hardware.name}), {hardware.precision} ({hardware.precision_reason})",
        **_processes(config, hardware),
        **_balance_over(config),
        "compile": f"{'on' if hardware.compile else 'off'} ({hardware.compile_reason})",
        "folder": str(run),
    }
    console.print(_two_columns("What will be trained", rows))
    if "tensorboard" in config.logger.boards:
        console.print(
            Text.assemble((f"{'watch it':<13}", "bold"), _dashboard(config)), soft_wrap=True
        )  # it can be pasted whole


def _legs(config: Config) -> dict[str, str]:
    """The schedule of each, of a run that is trained longer."""
    legs = legs_in_words(config.optim, max_steps=config.trainer.max_steps, d_model=config.model.d_model)
    lines = [f"steps {leg['first_step']:,} to {leg['last_step']:,}: {leg['schedule']}" for leg in legs]
    return {"schedule": "\n".join(lines)} if config.optim.legs else {}


def _processes(config: Config, hardware: Hardware) -> dict[str, str]:
    """What several of them change."""
    if (number := config.trainer.processes) == 1:
        return {}
    rows, model = config.rows_per_process, config.model
    each = f"{number}, each with {rows} of {config.data.batch_size} rows"
    if model.num_switch_layers and config.router.limit(model.capacity_factor, training=True) is not None:
        each += ", for which its experts have slots"
    own = model.num_switch_layers > 0 and config.balance_over == "micro_batch"
    loads = "; balance over each one's rows" if own else ""
    return {"processes": each + loads + ("; steps are not recorded" if hardware.device == "cuda" else "")}


def _balance_over(config: Config) -> dict[str, str]:
    """Where that is not a micro-batch."""
    step = "all rows of a step, whose choices a first pass counts: each step takes about a third longer"
    words = {"sequence": "one row at a time", "step": step}.get(config.balance_over)
    return {"balance over": words} if words and config.model.num_switch_layers else {}


def _added(config: Config, num_training: int) -> dict[str, str]:
    """How `data=plays` was made, and how much more text it is."""
    if config.data.text != "plays":
        return {}
    times = num_training / (TINY_SHAKESPEARE.num_bytes - VALIDATED)
    changed = ", ".join(f"{number:,} {what}" for what, number in LEFT_OUT.items())
    return {
        "plays": f"{len(ADDED)} more than Tiny Shakespeare has: {times:.2f} times its text to train on; left out "
        f"or replaced: {changed}"
    }


def _dashboard(config: Config) -> str:
    elsewhere = "" if Path(config.outputs) == OUTPUTS else f" --outputs {shell_word(config.outputs)}"
    return f"{shlex.quote(interpreter())} -m switch_lm.dashboard{elsewhere}"


def _router(config: Config) -> str:
    """Which router it is, and what keeps the load even."""
    experts, balance = config.model.num_experts, config.balance
    biases = {"sign": f"a bias that moves by {balance.rate:g}", "quantile": "a bias set from the scores of each step"}
    by = biases.get(balance.name, "nothing")
    how = f"balance loss x {config.alpha:g} (alpha)" if balance.adds_loss else f"balanced by {by}, not by alpha"
    if balance.adds_loss and not config.router.has_balance_loss:
        how = "no balance loss: alpha does nothing to it"
    selected = config.router.experts_per_token(experts, config.model.capacity_factor)
    return f"{config.router.name}, {selected:g} of {experts} experts per token, {how}"


def print_result(console: Console, result: Mapping[str, Any], config: Config, *, run: Path, prompt: str) -> None:
    """The end of a run: figures, files, what to try next. `prompt` is one that fits its text."""
    speed = f"{result['tokens_per_second']:,.0f} characters/s in training"
    if result["matmul_share"] is not None:
        dtype = "bf16" if result["hardware"]["precision"] == "bf16" else "float32"
        speed += f", {100 * result['matmul_share']:.0f}% of this machine's {dtype} matrix products"
    rows = {
        "val_loss": f"{result['val_loss']:.4f} nats at the last step (best {result['best_val_loss']:.4f})",
        "speed": f"{speed}; {result['seconds']:.0f} s in all",
    }
    if averaged := result.get("val_loss_averaged"):
        losses = ", ".join(f"{name}: {loss:.4f}" for name, loss in averaged.items())
        rows["averaged"] = f"{losses} (last weights: {result['val_loss']:.4f})"
    if result["dropped"] is not None:
        layers = ", ".join(f"{100 * share:.1f}" for share in result["dropped_by_layer"])
        rows["dropped"] = (
            f"{result['dropped']:.2%} of choices between the last two validations; over the whole run, by layer: "
            f"{layers}%"
        )
        rows["balance"] = f"busiest expert {result['load_max_over_mean']:.2f} x the mean load (validation, worst layer)"
    if "baselines" in result:
        rows["baselines"] = in_words(result)
    if result["router_alarms"]:
        rows["warning"] = "\n".join(result["router_alarms"])
    rows["files"] = f"{run}/ (result.json, {CHECKPOINTS}/{BEST}, {CHECKPOINTS}/{LAST}, {METRICS})"
    name = shlex.quote(result["name"] if run.parent == OUTPUTS / "runs" else str(run))
    python = shlex.quote(interpreter())
    control = " ".join([python, "-m switch_lm.train model=dense", *map(shell_word, _kept(config))])
    look = [
        f"{python} -m switch_lm.evaluate --run {name} --capacity-factor 0.5 1 2 none  # what capacity costs it",
        f"{python} -m switch_lm.check --run {name}    # what its routing leaks, drops and learns",
        f"{python} -m switch_lm.inspect --run {name}  # what its experts do",
        *([] if _goes_on(config) else [f"{control}  # the dense control: the same products, no router"]),
    ]
    commands = [
        f"{python} -m switch_lm.generate --run {name} --prompt={shell_word(prompt)}",
        *(look if result["dropped"] is not None else []),
        *(
            [f"{_dashboard(config)}  # its losses, and a picture of each layer's experts"]
            if "tensorboard" in config.logger.boards
            else []
        ),
    ]
    console.print(_two_columns("Result", rows))
    _show(console, "loss: dots in training, x in validation", _curve(run, unicode=console.encoding.startswith("utf")))
    _show(console, "sample", harmless(result.get("sample", "")).strip("\n").splitlines())
    console.print(Text("try next", style="bold"))
    console.print(Text("\n".join(f"  {command}" for command in commands)), soft_wrap=True)  # each can be pasted whole


def _goes_on(config: Config) -> bool:
    """Whether the run began with other weights or trained a part of them, so that no dense run is its control."""
    return bool(config.optim.legs) or config.init_from is not None or config.train_only != "all"


def _kept(config: Config) -> list[str]:
    """What its dense control has, too: the keys of model, text, training, seed and outputs that are not the default."""
    plain = flatten(asdict(config))
    changed = [key for key in plain if key in KEYS and plain[key] != KEYS[key].default]
    optim = [] if plain["optim.name"] == KEYS["optim.name"].default else [f"optim={plain['optim.name']}"]
    own = [
        key for key in changed if key.startswith(("model.", "data.", "optim.")) or key in ("seed", "outputs", *STEPS)
    ]
    return [
        *optim,
        *(f"{key}={show(plain[key])}" for key in own if key not in (*ROUTED, *OF_THIS_RUN)),
    ]


def _show(console: Console, title: str, lines: Sequence[str]) -> None:
    """Under a title, which wants something below it."""
    if lines:
        console.print(Text(title, style="bold"))
        console.print(Text("\n".join(f"  {line}".rstrip() for line in lines)), soft_wrap=True)


def _curve(run: Path, *, unicode: bool) -> list[str]:
    """Without the first twentieth of the steps, whose loss would flatten all the rest."""
    rows = metrics.read(run)
    training, validation = (list(metrics.series(rows, tag).items()) for tag in ("train/loss", "val/loss"))
    begin = max((step for step, _ in training), default=0) / 20
    shown = ([point for point in points if point[0] >= begin] for points in (training, validation))
    return plot(*shown, unicode=unicode)


def _two_columns(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(harmless(text)))  # no markup: a path may hold brackets
    return table
