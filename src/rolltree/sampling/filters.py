"""The sampling policy: from logits to log-probabilities.

Pure functions of each row: a row's result does not depend on the rows beside it. Does not draw tokens.

Order: temperature, top-k, top-p over what top-k left (renormalised), min-p: that of Hugging Face's
generation warpers. (vLLM applies min-p first; only min-p together with top-p can tell the two apart.)
Ties: top-k keeps every token that ties with the k-th; where equal tokens straddle the top-p cut, the higher
ids stay; min-p keeps tokens at exactly min_p times the maximum. The most likely token always stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rolltree.sampling.rows import RowParams

NEG_INF = float("-inf")


def log_probs(logits: Tensor, params: RowParams) -> Tensor:
    """Log-probabilities, float32 [N, V], of the sampling policy for logits [N, V] of any float type.

    Filtered tokens are -inf. A greedy row gets the unfiltered log-softmax at temperature 1, the figure that
    trainers want; its policy as a distribution is `policy_log_probs`. A row with NaN or +inf, or without any
    finite logit, is all NaN.
    """
    scaled = logits.float()
    if params.temperature is not None:
        scaled = scaled / params.temperature
    return torch.log_softmax(_min_p(_top(scaled, params), params), dim=-1)


def policy_log_probs(logits: Tensor, params: RowParams) -> Tensor:
    """As `log_probs`, but a greedy row is a point mass: 0 at the argmax of its logits, -inf elsewhere."""
    log_p = log_probs(logits, params)
    if params.greedy is None:
        return log_p
    point = torch.full_like(log_p, NEG_INF).scatter_(-1, logits.float().argmax(-1, keepdim=True), 0.0)
    return torch.where(params.greedy & ~log_p.isnan(), point, log_p)


def _top(scaled: Tensor, params: RowParams) -> Tensor:
    """Cut to top-k and top-p, sorting only the rows that ask for it."""
    if params.top_k is None and params.tail is None:
        return scaled
    if params.cut_rows is None:
        return _top_of(scaled, params)
    part = _top_of(scaled.index_select(0, params.cut_rows), params)
    return scaled.index_copy(0, params.cut_rows, part)


def _top_of(scaled: Tensor, params: RowParams) -> Tensor:
    if params.tail is not None:
        return _top_p(scaled, params.tail, params.top_k)
    assert params.top_k is not None
    vocab = scaled.shape[-1]
    best = scaled.topk(min(params.max_top_k, vocab), dim=-1).values
    kth = best.gather(-1, (params.top_k.clamp(max=vocab) - 1).expand(len(scaled), 1))
    return scaled.masked_fill(scaled < kth, NEG_INF)


def _top_p(scaled: Tensor, tail: Tensor, top_k: Tensor | None) -> Tensor:
    """Top-k and top-p from one ascending sort: cut the least likely tokens whose total mass is <= tail."""
    values, ids = scaled.sort(dim=-1, stable=True)
    if top_k is not None:
        kth = values.gather(-1, (values.shape[-1] - top_k).clamp(min=0).expand(len(values), 1))
        values = values.masked_fill(values < kth, NEG_INF)
    cut = values.softmax(dim=-1).cumsum(dim=-1) <= tail
    cut[..., -1] = False
    return torch.empty_like(scaled).scatter_(-1, ids, values.masked_fill(cut, NEG_INF))


def _min_p(scaled: Tensor, params: RowParams) -> Tensor:
    if params.log_min_p is None:
        return scaled
    floor = scaled.amax(dim=-1, keepdim=True) + params.log_min_p
    return scaled.masked_fill(scaled < floor, NEG_INF)
