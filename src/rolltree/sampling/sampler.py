"""Draw one token a row with coupled noise.

The token is a function of (logits, settings, seed, position) alone. Makes no host sync. Does not raise on
failed rows: a row whose logits hold NaN or +inf comes back with a NaN log-probability and margin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rolltree.sampling.filters import NEG_INF, log_probs
from rolltree.sampling.noise import UInt64Array, gumbel
from rolltree.sampling.rows import RowParams


class Samples(NamedTuple):
    """One token a row."""

    tokens: Tensor
    """int64 [N]."""
    log_probs: Tensor
    """float32 [N]: under the sampling policy (greedy rows: log-softmax at T=1); NaN: failed row."""
    margins: Tensor
    """float32 [N]: gap between the best and the second best score (greedy rows: logit); near 0: near tie."""


def sample(logits: Tensor, params: RowParams, keys: UInt64Array) -> Samples:
    """Sample logits [N, V] under settings of N rows (or one, shared) and coupled keys [N] of `row_keys`."""
    logits = logits.float()
    log_p = log_probs(logits, params)
    if params.all_greedy:
        tokens, margins = _best_two(logits.clone())
    else:
        scores = gumbel(keys, logits.shape[-1], logits.device).add_(log_p)
        tokens, margins = _best_two(scores if params.greedy is None else scores.where(~params.greedy, logits))
    return Samples(tokens, log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), margins)


def _best_two(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Argmax (of ties the lowest id) and gap to the runner-up of scores [N, V], which are overwritten.

    The gap is inf where one token alone has a chance. It tells how much the scores may move before the token changes;
    it does not see a token that is about to pass a top-k, top-p or min-p cut.
    """
    best, tokens = torch.max(scores, dim=-1, keepdim=True)
    second = scores.scatter_(-1, tokens, NEG_INF).amax(dim=-1)
    return tokens.squeeze(-1), best.squeeze(-1) - second
