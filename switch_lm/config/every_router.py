"""One small configuration for each family of routers, which a comparison of all of them trains. No torch."""

from collections.abc import Sequence
from typing import Any

from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError
from switch_lm.config.plugins import load_plugins
from switch_lm.config.rules import not_of

BASE = ["trainer.precision=fp32", "trainer.compile=false"]


def overrides_of_each(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each family, plugins' ones too, by its name: the given ones that it has keys for.

    The model is that of `experiment=smoke`, unless they name another. What `alpha` cannot balance, and a bias can, is
    balanced by one. ConfigError if the overrides choose a router.
    """
    load_plugins()
    keys = {override: override.partition("=")[0] for override in overrides}
    if chosen := [override for override, key in keys.items() if key == "router"]:
        raise ConfigError(f"{chosen[0]}: --all-routers takes every router in turn; leave it out")
    base = BASE if "experiment" in keys.values() else ["experiment=smoke", *BASE]
    result = {}
    for name, family in FAMILIES["router"].items():
        options: Any = family.options
        own = [one for one, key in keys.items() if _has(name, key)]
        by_bias = options.selects_by_score and not options.has_balance_loss
        balanced = not {"balance", "balance.name"}.isdisjoint(keys.values())
        result[name] = [*base, f"router={name}", *["balance=quantile"] * (by_bias and not balanced), *own]
    return result


def _has(name: str, key: str) -> bool:
    """Whether the key means something to this router, or no router has it."""
    options: Any = FAMILIES["router"][name].options
    own = key.removeprefix("router.")
    if not key.startswith("router."):
        return True
    return (
        not_of("router", name, own) is None
        and own not in options.unused
        and not (own == "top_k" and options.one_expert)
    )
