"""Biases on the selection that even the experts' loads: the score plus bias selects, the score alone makes the gate."""

from torch import Tensor


def by_sign(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """b_i + rate x sign(mean load - load_i), centred (DeepSeek-V3, section 2.1.2)."""
    load_E = load_E.to(bias_E.dtype)
    return _centred(bias_E + rate * (load_E.mean() - load_E).sign())


def by_quantile(bias_E: Tensor, score_TE: Tensor, top_k: int) -> Tensor:
    """The bias with which each expert would be selected by its K / E of the tokens, if the others kept theirs, centred.

    `score_TE` (float32) of all tokens of a step; K < E. A token's cut-off c_t is its (K + 1)-th largest score + bias,
    and b_i the K / E quantile over tokens of c_t - score_ti. Source: Kimi K3 report, section 2.3.3.
    """
    num_tokens, num_experts = score_TE.shape
    if num_tokens < num_experts:  # fewer than one token for each expert
        return bias_E
    cutoff_T1 = (score_TE + bias_E).topk(top_k + 1, dim=-1).values[:, -1:]
    needed_ET = (cutoff_T1 - score_TE).T.contiguous()
    number = num_tokens * top_k // num_experts
    last_E, next_E = (needed_ET.kthvalue(place, dim=1).values for place in (number, number + 1))
    return _centred((last_E + next_E) / 2)


def _centred(bias_E: Tensor) -> Tensor:
    """Only differences between biases select."""
    return bias_E - bias_E.mean()


def exceeded_by(score_TE: Tensor, number: int) -> Tensor:
    """The score (E) of each expert that `number` of the T tokens exceed; below all scores where that is all tokens."""
    num_tokens = score_TE.shape[0]
    if number >= num_tokens:
        return score_TE.amin(dim=0) - 1.0
    return score_TE.T.contiguous().kthvalue(num_tokens - number, dim=1).values
