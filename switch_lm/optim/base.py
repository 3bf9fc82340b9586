"""What an optimizer of this package is: a recipe that gives the parameters of a model to optimizers of torch."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from torch import nn
from torch.optim import Optimizer

from switch_lm.config.families import load, register
from switch_lm.optim.joint import JointOptimizer
from switch_lm.optim.options import OptimOptions


class Model(Protocol):
    """What a recipe may ask of the model that it trains, a `SwitchLM`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them, each once."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def router_parameters(self) -> Iterable[nn.Parameter]:
        """Those of all routers."""
        ...

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of attention and feed-forwards (O, I), as in `nn.Linear`, and stacks of an expert's (E, I, O)."""
        ...


class Recipe(ABC):
    """One family of the group `optim`: subclass it in a file of your own, with a dataclass of options, and a YAML.

    A subclass that states `name` becomes `optim=NAME`. `Options` is a dataclass derived from `OptimOptions` (or from
    `AdamWOptions`, if the recipe derives from `AdamWRecipe`); each field is a `key(default, meaning, rule)`, that of
    `name` has the recipe's name as its default, and configs/optim/NAME.yaml states the same defaults. Where a step
    multiplies matrices, `Options.flops_per_step` says how much that is, for the plan and result.json.

    A recipe writes `optimizers`. It may read:

    * `self.options`: the values of the run, an `Options`.
    * `self.precision`: `bf16` or `fp32`, in which large products of a step should be computed. Parameters and gradients
      are float32 in both.
    * `self.model`: `parameters()`; `hidden_matrices()`, of shape (O, I) or, stacks of E experts, (E, I, O);
      `router_parameters()`.

    What training does with the optimizers:

    * They step in turn, without a closure, once per optimizer step, after the gradients of all micro-batches are added
      up and clipped to `grad_clip`. A parameter may have no gradient (`grad` is None).
    * The schedule sets `lr` of every group, before each step, to the group's first `lr` times a factor. So an optimizer
      reads `group["lr"]`, and keeps no rate of its own.
    * A checkpoint holds their `state_dict()`: what stands in `self.state[parameter]` (tensors and plain numbers) and in
      the groups. A run that is continued gets both back. Nothing else is kept.
    * Group number i appears on the board as `optim/lr_i`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[OptimOptions]]
    options: OptimOptions

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return
        if cls.Options().name != cls.name:
            raise TypeError(
                f"{cls.__qualname__}: {cls.Options.__qualname__}.name is {cls.Options().name!r}; give this key the "
                f"default {cls.name!r}"
            )
        register("optim", cls.name, options=cls.Options, code=cls)

    def __init__(self, model: Model, options: OptimOptions, *, precision: str) -> None:
        self.model, self.options, self.precision = model, options, precision

    @abstractmethod
    def optimizers(self) -> Sequence[Optimizer]:
        """New optimizers, each parameter of the model in one of them."""

    def groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups with `lr` and `weight_decay`, for an optimizer of torch.

        Matrices decay, vectors do not. Those of routers have groups of their own, the last ones, if `router_lr` is set.
        """
        options = self.options
        apart = set(self.model.router_parameters()) if options.router_lr is not None else set()
        parts: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            parts[parameter in apart, parameter.dim() < 2].append(parameter)
        return [
            {
                "params": part,
                "lr": options.router_lr if of_router else options.lr,
                "weight_decay": 0.0 if is_vector else options.weight_decay,
            }
            for (of_router, is_vector), part in sorted(parts.items())
        ]

    def all_but(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The other parameters of the model, in its order."""
        others = set(parameters)
        return [parameter for parameter in self.model.parameters() if parameter not in others]


def build_optimizer(model: Model, options: OptimOptions, *, precision: str) -> JointOptimizer:
    """The optimizer that `options.name` chooses. `precision`: bf16 or fp32.

    ValueError if its recipe gives a parameter to no optimizer, or to two. KeyError if there is none of this name.
    """
    recipe: Recipe = load("optim", options.name)(model, options, precision=precision)
    joint = JointOptimizer(recipe.optimizers())
    given = {parameter for group in joint.param_groups for parameter in group["params"]}
    left_out = [name for name, parameter in model.named_parameters() if parameter not in given]
    if left_out:
        raise ValueError(
            f"optim={options.name} trains all parameters but {', '.join(left_out)}; "
            f"{type(recipe).__qualname__}.optimizers must give each to an optimizer"
        )
    return joint
