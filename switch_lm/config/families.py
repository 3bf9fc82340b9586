"""Which routers and optimizers there are, what options each has, and where its code stands. No torch.

A family of this package is declared with its options, and its code is imported when it is needed. One of a plugin is
declared by its class (see `config.plugins`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Family:
    """One choice of a group."""

    options: type  # the dataclass of its keys
    code: type | str  # the class that does it, or "module:Class"

    def load(self) -> type:
        """The class that does it."""
        if isinstance(self.code, type):
            return self.code
        module, _, name = self.code.partition(":")
        loaded: type = getattr(import_module(module), name)
        return loaded


FAMILIES: dict[str, dict[str, Family]] = {"router": {}, "optim": {}}


def family(group: str, code: str) -> Callable[[T], T]:
    """Declares an options dataclass of this package as a family, by the default of its key `name`."""

    def declare(options: T) -> T:
        FAMILIES[group][options().name] = Family(options, code)
        return options

    return declare


def register(group: str, name: str, *, options: type, code: type) -> None:
    """Declares the class of a plugin as a family.

    ValueError if another class has the name; TypeError if `options` is not made of keys.
    """
    require_keys(options)
    known = FAMILIES[group].get(name)
    if known is not None and not _same(known.code, code):
        raise ValueError(f"{group}={name}: there is one of this name already; give {code.__qualname__} another name")
    FAMILIES[group].setdefault(name, Family(options, code))


def has_balance_loss(config: Mapping[str, Any]) -> bool:
    """Whether `alpha` weights anything in a flat configuration; of an unknown router its balance alone says so."""
    router = FAMILIES["router"].get(str(config.get("router.name")))
    has_loss = router is None or bool(getattr(router.options, "has_balance_loss", True))
    return has_loss and config.get("balance.name", "loss") == "loss"


def require_keys(options: type) -> None:
    """TypeError if a class is not made of keys: a dataclass whose fields have defaults."""
    if "__dataclass_fields__" not in vars(options):  # `is_dataclass` is true of what it inherits, too
        raise TypeError(f"{options.__qualname__} is not decorated with @dataclass, so its fields are no keys")
    try:
        options()
    except TypeError as error:
        raise TypeError(f"{options.__qualname__}: each field must have a default ({error})") from error


def _same(known: type | str, code: type) -> bool:
    place = f"{code.__module__}:{code.__qualname__}"
    return place == (known if isinstance(known, str) else f"{known.__module__}:{known.__qualname__}")


def load(group: str, name: str) -> Any:
    """The class of a family. KeyError if there is none of this name."""
    return FAMILIES[group][name].load()
