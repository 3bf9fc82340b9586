"""The top-k router: each token goes to the K experts with the largest probabilities."""

from dataclasses import replace

from torch import Tensor

from switch_lm.routers.base import Promise
from switch_lm.routers.options import TopKOptions
from switch_lm.routers.switch import SwitchRouter


class TopKRouter(SwitchRouter):
    """As `switch`, with K experts per token, whose gates may be renormalised (Shazeer et al. 2017, GShard)."""

    name = "topk"
    Options = TopKOptions
    options: TopKOptions

    @property
    def by_choice(self) -> bool:
        return self.options.queue_order == "choice"

    def gates(self, score_TK: Tensor) -> Tensor:
        """As those of `switch`, or divided by their sum."""
        if self.options.renormalize_gates:
            return score_TK / score_TK.sum(dim=-1, keepdim=True)
        return super().gates(score_TK)

    def promise(self, *, training: bool, limited: bool) -> Promise:
        promise = super().promise(training=training, limited=limited)
        return replace(
            promise, sees_future=promise.sees_future or (limited and self.by_choice and self.options.top_k > 1)
        )
