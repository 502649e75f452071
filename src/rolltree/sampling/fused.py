"""The sampler as one compiled function: log-probabilities, noise and choice in a few passes over the logits.

Written out, the noise alone makes some twenty passes over float64 [N, V], which on a GPU costs more than the forward of
a small model. Same noise and same rule as `sampler.sample`, which stays the reference: log-probabilities differ by
rounding (5e-7 seen), so a token differs only where two scores are that close. Plain temperature sampling only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from rolltree.sampling.noise import UInt64Array, key_halves, noise_of
from rolltree.sampling.rows import RowParams
from rolltree.sampling.sampler import Samples, sample

Fused = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def sample_compiled(logits: Tensor, params: RowParams, keys: UInt64Array) -> Samples:
    """As `sample`; batches with greedy or filtered rows go there. The first call compiles: up to a minute."""
    if not _is_plain(params):
        return sample(logits, params, keys)
    k0, k1 = key_halves(keys, logits.device)
    temperature = params.temperature
    if temperature is None:
        temperature = torch.ones((1, 1), device=logits.device)
    return Samples(*_compiled()(logits, temperature, k0, k1))


def _is_plain(params: RowParams) -> bool:
    return params.greedy is None and params.top_k is None and params.tail is None and params.log_min_p is None


@cache
def _compiled() -> Fused:
    compiled: Fused = torch.compile(fused, dynamic=True, fullgraph=True)
    return compiled


def fused(logits: Tensor, temperature: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token, log-probability and margin of each row of logits [N, V]; temperature [N, 1] or [1, 1], key halves [N]."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    ids = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)
    scores = log_p + noise_of(ids, k0.unsqueeze(-1), k1.unsqueeze(-1))
    best, tokens = scores.max(dim=-1, keepdim=True)
    second = scores.masked_fill(ids == tokens, float("-inf")).amax(dim=-1)
    return tokens.squeeze(-1), log_p.gather(-1, tokens).squeeze(-1), best.squeeze(-1) - second
