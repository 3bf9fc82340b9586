"""The rules a configuration must meet, checked once, before anything is downloaded or written."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from switch_lm.config import boards
from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError, keys_of
from switch_lm.config.legs import ARE_LEGS, read_legs
from switch_lm.config.reading import build
from switch_lm.config.reading import show as show
from switch_lm.config.schema import KEYS, Config, DataConfig, keys_in

REMOVED = {"data.num_workers": "no such key any more; batches need no workers: leave it out"}
OF_ROUTER = (
    "renormalize_gates", "gate_scale", "selection", "drop_order", "queue_order", "overflow", "capacity_group",
    "random_drop_rate",
)  # fmt: skip
MOVED = {
    "model.top_k": "router.top_k (2 and more: router=topk)",
    "model.router_jitter": "router.jitter",
    "model.router_input_dropout": "router.input_dropout",
    "model.selection_bias_rate": "balance=sign balance.rate=RATE",
} | {f"model.{name}": f"router.{name}" for name in OF_ROUTER}
OLD_CHOICES = {
    "experiment=one_minute": "has a new name: experiment=short",
    "experiment=twenty_minutes": "has a new name: experiment=wide",
    "experiment=one_hour": "has a new name: experiment=wide_long",
    "experiment=five_minutes": "is the default now: leave it out; trainer.budget=5m trains for about five minutes",
}


def refusal(error: Exception) -> str:
    """What a command prints of it."""
    return f"The configuration cannot be used:\n{error}"


Row = tuple[str, Callable[[Config], bool], str, str]  # key, does it hold, rule, fix

COMBINATIONS: list[Row] = [
    (
        "model.num_heads",
        lambda c: c.model.num_heads < 1 or c.model.d_model % c.model.num_heads == 0,
        "must divide model.d_model",
        "choose a divisor of model.d_model",
    ),
    (
        "data.hold_out",
        lambda c: (c.data.hold_out is None) == (c.data.split not in ("by_play", "within_play")),
        "can be given only with data.split=by_play or within_play, which need it",
        "give both, such as data.split=by_play data.hold_out=macbeth, or neither",
    ),
    (
        "data.path",
        lambda c: c.data.path is None or c.data.text == DataConfig.text,
        "cannot be combined with data=plays",
        "leave out one of the two",
    ),
    (
        "model.position",
        lambda c: (
            c.model.position != "rotary"
            or c.model.num_heads < 1
            or c.model.d_model % c.model.num_heads != 0
            or c.model.d_model // c.model.num_heads % 2 == 0
        ),
        "rotary needs an even head width (d_model / num_heads)",
        "change model.num_heads, or model.position=learned",
    ),
    (
        "model.switch_layers",
        lambda c: c.model.switch_layers is None or sorted(set(c.model.switch_layers)) == c.model.switch_layers,
        "must name each block once, in order",
        "for example model.switch_layers=[1,3]",
    ),
    (
        "model.switch_layers",
        lambda c: all(0 <= block < c.model.num_layers for block in c.model.switch_layers or ()),
        "blocks have the numbers 0 .. model.num_layers - 1",
        "leave out the others, or raise model.num_layers",
    ),
    (
        "data.batch_size",
        lambda c: c.trainer.processes < 1 or c.data.batch_size % c.trainer.processes == 0,
        "must be a multiple of trainer.processes: each takes as many rows",
        "change one of the two",
    ),
    (
        "optim.legs",
        lambda c: (
            not ARE_LEGS.holds(c.optim.legs) or all(leg.of < c.trainer.max_steps for leg in read_legs(c.optim.legs))
        ),
        "a leg goes on to a higher trainer.max_steps than the one before",
        "leave it out: resume writes it",
    ),
    (
        "data.unused_characters",
        lambda c: c.data.unused_characters == "drop" or c.init_from is not None,
        "keep needs init_from: the characters kept are those of that run",
        "leave it out, or name the run with init_from=RUN",
    ),
    (
        "model.upcycle_noise",
        lambda c: c.model.upcycle_noise == 0 or c.init_from is not None,
        "is for experts that start from a dense run",
        "leave it out, or name the run with init_from=RUN",
    ),
    (
        "trainer.budget",
        lambda c: c.trainer.budget is None or c.resume is None,
        "cannot be used with resume, which trains the steps that are left",
        "leave it out, and give the keys from the run's 'to repeat this run' line (its config.yaml has them too); "
        "`python -m switch_lm.train --plan resume=NAME KEYS` says how long the remaining steps take here",
    ),
]


SET_BY_BUDGET = ("trainer.max_steps", "trainer.val_every", "optim.warmup_steps")


def not_in_sweep(config: Config) -> str | None:
    """Why a job of a sweep cannot have the `resume` or the budget that it has; None if it has none."""
    if config.resume is not None:
        rule = "cannot be used in a sweep, whose jobs continue by themselves, to the steps that they began with"
        fix = "leave it out; `python -m switch_lm.train -m init_from=RUN ...` trains more from the weights of a run"
        return f"resume={config.resume}: {rule}; {fix}"
    if config.trainer.budget is None:
        return None
    rule = "cannot be used in a sweep: its jobs are compared at the configured number of steps"
    fix = (
        "leave it out, or set trainer.max_steps; `python -m switch_lm.train --plan -m ...` says how long the jobs take"
    )
    return f"trainer.budget={config.trainer.budget}: {rule}; {fix}"


def resolve(cfg: DictConfig | Config) -> Config:
    """The typed configuration. ConfigError if a key is unknown, a type is wrong or values break rules (all at once).

    A recipe may set a key that the chosen router or optimizer does not have: it is left out.
    """
    if isinstance(cfg, Config):
        return resolved(asdict(cfg))
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    assert isinstance(plain, dict)
    return resolved(plain)


def resolved(plain: dict[Any, Any]) -> Config:
    """`resolve` for plain values, which may be changed."""
    config, wrong = build(Config, _text_switches(plain), unknown=unknown_key, parts=_families_of(plain))
    config.logger.boards, of_boards = boards.with_defaults(config.logger.boards)
    lines = wrong + of_boards + _of_keys(config) + ([] if wrong else _of_combinations(config))
    if lines:
        raise ConfigError("\n".join(lines))
    return config


def _families_of(plain: dict[Any, Any]) -> dict[str, type]:
    """The options of the families that are chosen; what only others have is taken out of `plain`."""
    chosen = {}
    for group, families in FAMILIES.items():
        values = plain.get(group)
        if not isinstance(values, dict):
            continue
        name = values.get("name")
        if name not in families:
            raise ConfigError(no_family(group, name))
        chosen[group] = families[name].options
        own = {field.name for field in fields(chosen[group])}
        for key in [key for key in values if key not in own and f"{group}.{key}" in KEYS]:
            del values[key]
    return chosen


def not_of(group: str, name: str, key: str) -> str | None:
    """The message for a key (without its group) that only other families of the group have; None if this one has it."""
    families = FAMILIES[group]
    having = [f"{group}={other}" for other, one in families.items() if key in keys_of(one.options)]
    if f"{group}={name}" in having or not having:
        return None
    return f"{group}.{key}: {group}={name} has no such key; {' and '.join(having)} {'have' if having[1:] else 'has'}"


def no_family(group: str, name: object) -> str:
    """The message for a router or optimizer that is not known here."""
    known = ", ".join(FAMILIES[group])
    return (
        f"{group}.name={show(name)}: no such {group} here; choose one of {known}, or name the plugin that has it: "
        "SWITCH_LM_PLUGINS=MODULE"
    )


def _of_keys(config: Config) -> list[str]:
    """A line for each key whose own rule does not hold."""
    values = flatten(asdict(config))
    return [
        f"{key.name}={show(values[key.name])}: {key.rule.text}"
        + ("" if key.default in (None, []) else f"; for example {key.name}={show(key.default)}")
        for key in keys_in(config).values()
        if key.rule is not None and values[key.name] is not None and not key.rule.holds(values[key.name])
    ]


def _of_combinations(config: Config) -> list[str]:
    """A line for each rule of several keys that does not hold."""
    values = flatten(asdict(config))
    broken = [(key, rule, fix) for key, holds, rule, fix in COMBINATIONS if not holds(config)]
    model = config.model
    problems = config.router.problems(model.num_experts, config.balance, model.capacity_factor)
    broken += [(key if "." in key else f"router.{key}", rule, fix) for key, rule, fix in problems]
    return [f"{key}={show(values.get(key))}: {rule}; {fix}" for key, rule, fix in broken]


def _text_switches(plain: Any) -> Any:
    """`trainer.compile=true` is parsed as a boolean; the key holds auto, true or false as text."""
    if isinstance(plain, dict) and isinstance(plain.get("trainer"), dict):
        value = plain["trainer"].get("compile")
        if isinstance(value, bool):
            plain["trainer"]["compile"] = str(value).lower()
    return plain


def _explain(error: OmegaConfBaseException) -> str:
    key = str(getattr(error, "full_key", "") or "")
    return f"{key}: {str(error).splitlines()[0]}"


def unknown_key(key: str) -> str:
    """The message for a key that no configuration has, with the nearest ones that exist."""
    if key in REMOVED:
        return f"{key}: {REMOVED[key]}"
    if key in MOVED:
        return f"{key} is now {MOVED[key]}"
    known = list(KEYS)
    near = difflib.get_close_matches(key, known, n=3) or [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    hint = f"did you mean {' or '.join(near)}?" if near else "`python -m switch_lm.train --cfg job` lists all keys"
    return f"{key}: no such key; {hint}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
