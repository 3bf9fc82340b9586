"""The sigmoid router: each token goes to the K experts with the largest sigmoids."""

from torch import Tensor

from switch_lm.routers.base import Router
from switch_lm.routers.loops import sigmoid_choice
from switch_lm.routers.options import SigmoidOptions
from switch_lm.routers.routing import Routing


class SigmoidRouter(Router):
    """s = sigmoid(x W_r); the K largest s + b are selected, and gates are s (K = 1) or s / the sum of the chosen s.

    The balance loss takes s / sum of all s. Source: DeepSeek-V3, section 2.1.2.
    """

    name = "sigmoid"
    Options = SigmoidOptions
    oracle = staticmethod(sigmoid_choice)

    def assign(
        self,
        x_TD: Tensor,
        logits_TE: Tensor,
        *,
        ids_T: Tensor | None,
        position_T: Tensor | None,
        capacity: int | None,
        num_groups: int,
    ) -> Routing:
        score_TE = logits_TE.sigmoid()
        return self.token_choice(
            self.top_experts(score_TE),
            score_TE,
            probs_TE=_shares(score_TE),
            logits_TE=logits_TE,
            capacity=capacity,
            num_groups=num_groups,
        )

    def gates(self, score_TK: Tensor) -> Tensor:
        """s, or for K >= 2 s / sum of the chosen s, dropped ones included."""
        return score_TK if score_TK.shape[1] == 1 else _shares(score_TK)


def _shares(score_TK: Tensor) -> Tensor:
    return score_TK / score_TK.sum(dim=-1, keepdim=True).clamp(min=1e-20)
