"""The options of the routers, as plain data, and the capacity of an expert. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from switch_lm.config.families import family
from switch_lm.config.keys import BELOW_ONE, at_least, key, one_of
from switch_lm.routers.balance_options import BalanceOptions as BalanceOptions

Problem = tuple[str, str, str]  # a key of the router (or another's whole name), the rule that it breaks, and the fix
NAME_OF_ROUTER = "Which router it is; router=NAME chooses it with its options."
TOP_K = (
    "Experts per token: 1 (Switch); with router=topk or sigmoid any number up to all; with router=threshold the "
    "average aimed at in training. A capacity counts choices, not tokens."
)


@dataclass
class RouterOptions:
    """The options that every router has. A family adds its own, and says what they mean for the computation."""

    has_balance_loss: ClassVar[bool] = True  # False: alpha does nothing to it
    learns: ClassVar[bool] = True  # False: its weights stay as they were drawn
    selects_by_score: ClassVar[bool] = True  # False: a bias on the selection does nothing, and no expert is second best
    one_expert: ClassVar[bool] = False  # whether top_k must be 1
    unused: ClassVar[tuple[str, ...]] = ()  # keys that mean nothing to it, and must stay as they are

    name: str = key("", NAME_OF_ROUTER)
    top_k: int = key(1, TOP_K, at_least(1))
    jitter: float = key(
        0.01,
        "The router's input is multiplied by U(1 - eps, 1 + eps) in training (paper, section 2.4 and appendix C).",
        BELOW_ONE,
    )
    input_dropout: float = key(0.0, "Dropout on the router's input in training (paper, appendix C).", BELOW_ONE)
    drop_order: str = key(
        "position",
        "Who gets a slot first: position (row, then place in it), random (the annotated implementation; training "
        "only), probability (the surest first: V-MoE). The last two let a token see its own future where tokens are "
        "dropped.",
        one_of("position", "random", "probability"),
    )
    overflow: str = key(
        "drop",
        "A choice without a slot: drop (adds 0: paper, section 2.2), reroute (tries its next best expert: "
        "No-Token-Left-Behind, appendix B; sees the future), passthrough (gate x the layer's input: the annotated "
        "implementation).",
        one_of("drop", "reroute", "passthrough"),
    )
    capacity_group: str = key(
        "batch",
        "Who shares an expert's slots: batch (all rows: paper, eq. 3), sequence (each row has its own).",
        one_of("batch", "sequence"),
    )
    random_drop_rate: float = key(
        0.0,
        "Share of choices dropped at random in training: a control, since dropping also acts as dropout does.",
        BELOW_ONE,
    )

    def num_groups(self, num_rows: int) -> int:
        """How many groups of tokens have capacity slots of their own, in a batch of `num_rows` rows."""
        return num_rows if self.capacity_group == "sequence" else 1

    def experts_per_token(self, num_experts: int, capacity_factor: float | None) -> float:
        """How many experts a token selects, on average; with the `capacity_factor` of training where none limits it."""
        return float(self.top_k)

    def limit(self, capacity_factor: float | None, *, training: bool) -> float | None:
        """The factor that really limits its experts when this one is configured; None: no limit."""
        return capacity_factor

    def spared(self, *, training: bool) -> float:
        """The share of choices that is not dropped at random."""
        return 1.0 - self.random_drop_rate if training else 1.0

    def num_params(self, d_model: int, num_experts: int) -> int:
        """The router's weights in one layer; each costs one multiplication per token."""
        return d_model * num_experts

    def problems(self, num_experts: int, balance: BalanceOptions, capacity_factor: float | None) -> Iterator[Problem]:
        """The rules between keys that do not hold. `capacity_factor`: that of training, None for no limit."""
        if self.top_k > num_experts >= 1:
            yield "top_k", "cannot be more than model.num_experts", "lower router.top_k or raise model.num_experts"
        if self.one_expert and self.top_k > 1:
            yield "top_k", *self.why_one_expert
        if self.overflow == "reroute" and self.top_k > 1:
            rule = "rerouting is defined for one choice per token: a second choice may be taken already"
            yield "overflow", rule, "router.overflow=drop, or router.top_k=1"
        for name in self.unused:
            if getattr(self, name) != (default := type(self).__dataclass_fields__[name].default):
                yield name, f"has no effect with router={self.name}", f"router.{name}={default}"
        if not (self.selects_by_score or self.unused):
            for name, value, other in (("overflow", "reroute", "drop"), ("drop_order", "probability", "position")):
                if getattr(self, name) == value:
                    yield name, f"router={self.name} has no scores to order by", f"router.{name}={other}"
        if balance.moves_bias:
            yield from self._problems_of_bias(num_experts, balance)

    @property
    def why_one_expert(self) -> tuple[str, str]:
        """The rule that a larger `top_k` breaks where `one_expert`, and the fix."""
        return f"router={self.name} sends a token to one expert", f"router=topk router.top_k={self.top_k}"

    def _problems_of_bias(self, num_experts: int, balance: BalanceOptions) -> Iterator[Problem]:
        other = "balance=loss" if self.has_balance_loss else "balance=none"
        if not self.selects_by_score:
            rule = f"router={self.name} has no selection that a bias could move"
            yield "balance.name", rule, other
        elif balance.name == "quantile" and self.top_k >= num_experts >= 1:
            rule = "with every token at all experts there is nothing to balance"
            yield "balance.name", rule, f"{other}, or lower router.top_k"


@family("router", "switch_lm.routers.switch:SwitchRouter")
@dataclass
class SwitchOptions(RouterOptions):
    """One expert per token, by the softmax of the scores (Switch Transformers, section 2.1)."""

    one_expert: ClassVar[bool] = True

    name: str = key("switch", NAME_OF_ROUTER)
    gate_scale: str = key(
        "probability",
        "What an expert's output is multiplied by: probability (paper, eq. 2), straight_through (1, with the "
        "probability's gradient: the annotated implementation).",
        one_of("probability", "straight_through"),
    )
    selection: str = key(
        "argmax",
        "argmax, or sample: experts drawn from the router's probabilities, in training (paper, appendix C).",
        one_of("argmax", "sample"),
    )

    def problems(self, num_experts: int, balance: BalanceOptions, capacity_factor: float | None) -> Iterator[Problem]:
        yield from super().problems(num_experts, balance, capacity_factor)
        if balance.moves_bias and self.selection != "argmax":
            rule = f"the bias of balance={balance.name} moves the largest score and does nothing to a random draw"
            yield "selection", rule, "router.selection=argmax"


@family("router", "switch_lm.routers.topk:TopKRouter")
@dataclass
class TopKOptions(SwitchOptions):
    """The K most probable experts per token (Shazeer et al. 2017, GShard)."""

    one_expert: ClassVar[bool] = False

    name: str = key("topk", NAME_OF_ROUTER)
    top_k: int = key(2, TOP_K, at_least(1))
    renormalize_gates: bool = key(
        False,
        "For top_k >= 2: divide a token's gates by their sum (Shazeer et al. 2017, GShard). Dropped choices count in "
        "the sum.",
    )
    queue_order: str = key(
        "token",
        "For top_k >= 2: token (all choices of a token together), choice (all first choices first: GShard; sees the "
        "future).",
        one_of("token", "choice"),
    )

    def problems(self, num_experts: int, balance: BalanceOptions, capacity_factor: float | None) -> Iterator[Problem]:
        yield from super().problems(num_experts, balance, capacity_factor)
        if self.renormalize_gates and self.top_k < 2:
            rule = "over a single choice the gate would be a constant 1, and the router would learn nothing from text"
            yield "renormalize_gates", rule, "router.renormalize_gates=false, or router.top_k=2"
        if self.renormalize_gates and self.gate_scale != "probability":
            rule = "a gate is either renormalised or straight-through, not both"
            yield "gate_scale", rule, "router.gate_scale=probability"
        if self.queue_order != "token" and self.top_k < 2:
            yield "queue_order", "there are no second choices at top_k=1", "router.queue_order=token"


@family("router", "switch_lm.routers.frozen:FrozenRouter")
@dataclass
class FrozenOptions(SwitchOptions):
    """A control: as `switch`, with weights that stay at their random initial values."""

    has_balance_loss: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    name: str = key("frozen", NAME_OF_ROUTER)


@family("router", "switch_lm.routers.sigmoid:SigmoidRouter")
@dataclass
class SigmoidOptions(RouterOptions):
    """The K experts with the largest sigmoids (DeepSeek-V3, section 2.1.2)."""

    name: str = key("sigmoid", NAME_OF_ROUTER)


@dataclass
class WithoutWeights(RouterOptions):
    """A control that selects one expert by no score."""

    has_balance_loss: ClassVar[bool] = False
    selects_by_score: ClassVar[bool] = False
    one_expert: ClassVar[bool] = True

    def num_params(self, d_model: int, num_experts: int) -> int:
        return 0

    def problems(self, num_experts: int, balance: BalanceOptions, capacity_factor: float | None) -> Iterator[Problem]:
        yield from super().problems(num_experts, balance, capacity_factor)
        for name in ("jitter", "input_dropout"):
            if getattr(self, name) not in (0.0, default := type(self).__dataclass_fields__[name].default):
                yield name, f"router={self.name} looks at no input", f"router.{name}={default}"


@family("router", "switch_lm.routers.hashing:HashRouter")
@dataclass
class HashOptions(WithoutWeights):
    """A control: each character always goes to the same expert (Roller et al. 2021)."""

    name: str = key("hash", NAME_OF_ROUTER)
    balanced: bool = key(
        True,
        "Whether characters are assigned greedily by their frequency in training, to even the loads; false: at random.",
    )


@family("router", "switch_lm.routers.uniform:UniformRouter")
@dataclass
class UniformOptions(WithoutWeights):
    """A control: an expert at random in training; in evaluation by a hash of the character and its position."""

    name: str = key("uniform", NAME_OF_ROUTER)


@dataclass
class CutoffOptions(RouterOptions):
    """An expert takes the tokens whose score exceeds a cut-off: any number of experts per token."""

    has_balance_loss: ClassVar[bool] = False
    selects_by_score: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = ("drop_order", "overflow", "random_drop_rate")

    cutoff_ema: float = key(
        0.8,
        "How much of an expert's stored cut-off is kept at each training step; the rest comes from that step. Longer "
        "averages (Expert Threshold: 0.99) suit longer runs: in short ones they lag, and tokens get too few experts.",
        BELOW_ONE,
    )


@family("router", "switch_lm.routers.expert_choice:ExpertChoiceRouter")
@dataclass
class ExpertChoiceOptions(CutoffOptions):
    """Each expert takes its most probable tokens (Zhou et al. 2022); in evaluation those above its stored cut-off."""

    one_expert: ClassVar[bool] = True

    name: str = key("expert_choice", NAME_OF_ROUTER)

    @property
    def why_one_expert(self) -> tuple[str, str]:
        rule = "experts choose tokens: model.capacity_factor says how many experts a token has on average"
        return rule, f"model.capacity_factor={self.top_k} router.top_k=1"

    def experts_per_token(self, num_experts: int, capacity_factor: float | None) -> float:
        return min(capacity_factor or 1.0, float(num_experts))

    def limit(self, capacity_factor: float | None, *, training: bool) -> float | None:
        return capacity_factor if training else None

    def problems(self, num_experts: int, balance: BalanceOptions, capacity_factor: float | None) -> Iterator[Problem]:
        yield from super().problems(num_experts, balance, capacity_factor)
        if capacity_factor is None:
            rule = "router=expert_choice gives each expert capacity_factor x tokens / num_experts tokens"
            yield "model.capacity_factor", rule, "model.capacity_factor=1 (or 2)"


@family("router", "switch_lm.routers.threshold:ThresholdRouter")
@dataclass
class ThresholdOptions(CutoffOptions):
    """A token goes to every expert whose cut-off its score exceeds (Expert Threshold routing, arXiv 2603.11535)."""

    unused: ClassVar[tuple[str, ...]] = (*CutoffOptions.unused, "capacity_group")

    name: str = key("threshold", NAME_OF_ROUTER)
    warmup_steps: int = key(
        100,
        "How many steps at the start route by expert choice, until cut-offs are known; at most a third of the run.",
        at_least(0),
    )

    def limit(self, capacity_factor: float | None, *, training: bool) -> float | None:
        return None


def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float | None) -> int | None:
    """Capacity slots per expert: min(T, max(1, ceil(capacity_factor x T / E))); None (no limit) if the factor is None.

    The factor is taken as the decimal number it prints as: in floats, ceil(1.1 x 100 / 10) is 12. The paper specifies
    neither the rounding nor the minimum of 1. Source: Switch Transformers, eq. 3.
    """
    if capacity_factor is None:
        return None
    factor = Fraction(str(capacity_factor))
    slots = -(-factor.numerator * num_tokens // (factor.denominator * num_experts))
    return min(num_tokens, max(1, slots))
