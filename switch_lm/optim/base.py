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
    """Divides a model's parameters among optimizers. A subclass with a `name` of its own is chosen by `optim=NAME`.

    It writes `optimizers`. `Options` are its configuration keys, a dataclass derived from `OptimOptions`, whose fields
    may be made by `switch_lm.config.keys.key`, with a rule; without keys of its own, a recipe leaves it out. What its
    steps cost in products of matrices is stated by `Options.flops_per_step`. A recipe may read:

    * `self.options`: the values of this run, an `Options`.
    * `self.model`: `parameters()`; `hidden_matrices()`, of shape (O, I), or (E, I, O) for a stack of E experts'; and
      `router_parameters()`.
    * `self.precision`: `bf16` or `fp32`, in which large products of a step should run. Parameters and gradients are
      float32 in both.

    What training does with the optimizers:

    * Once per optimizer step, they step in turn, without a closure: the gradients of all micro-batches are added up and
      clipped to `grad_clip`. A parameter may have no gradient (`grad` is None).
    * Before each step the schedule sets the `lr` of every group to its first value times a factor. So an optimizer
      reads `group["lr"]` in each step.
    * A checkpoint holds `state_dict()` of each: `self.state[parameter]`, which may hold tensors and plain data, and the
      groups. A run that is continued gets these back, and nothing else that an optimizer keeps.
    * The rate of group number i is logged as `optim/lr_i`.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[OptimOptions]] = OptimOptions
    options: OptimOptions

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        if "name" in vars(cls):
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
