"""Acceptance rules of speculative decoding: which drafted nodes stay, and which tokens are emitted.

A row is a tree of Q nodes, padded: node 0 is the last committed token, nodes 1..lengths[b] are the drafts,
parents before children; `parents=None`: every row is a chain (node i hangs on i - 1). `log_p[b, i]` [V] is
the policy after node i, `positions[b, i]` the index among the generated tokens of the token drawn after it.
Both rules emit exact samples of the policy. Rule 2 reads one index a row on the host, rule 1 none.

1. Coupled (default). The target draws at every node with noise keyed by (seed, position); a draft stays iff
   it is that token. The output is a function of (policy, seed) alone, whatever was drafted.
   arXiv 2408.07978, drafter-invariant speculative decoding.
2. One-hot rejection. Accept draft x with probability p(x); else take x out of p, renormalise, try the next
   sibling; when none is left, sample what remains of p.
   2211.17192 and 2302.01318 with q a point mass; siblings as in 2305.09781, algorithm 2.
   Uniforms (domain ACCEPT) and residual noise (domain RESIDUAL) are independent of every draft.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rolltree.sampling.filters import NEG_INF
from rolltree.sampling.noise import ACCEPT, RESIDUAL, UInt64Array, gumbel, row_keys, uniform
from rolltree.sampling.paths import accepted_path, drafted, padded_parents
from rolltree.types import Int64Array


class Verified(NamedTuple):
    """Outcome of one step; row b emits `tokens[b, :accepted[b] + 1]`."""

    path: Tensor
    """int64 [B, Q]: node 0, then the accepted nodes; entries past `accepted` are indices without meaning."""
    accepted: Tensor
    """int64 [B]: number of accepted draft nodes."""
    tokens: Tensor
    """int64 [B, Q]: the token emitted after node `path[b, j]`; entries past `accepted` have no meaning."""


def verify_coupled(target: Tensor, draft: Tensor, parents: Tensor | None, lengths: Tensor) -> Verified:
    """Rule 1. `target`, `draft`: int64 [B, Q], the token drawn after each node and the node's own token."""
    above = padded_parents(parents, drafted(lengths, draft.shape[1]))
    path, count = accepted_path(draft == target.gather(1, above), parents, lengths)
    return Verified(path, count, target.gather(1, path))


def verify_one_hot(
    log_p: Tensor, draft: Tensor, parents: Tensor | None, lengths: Tensor, seeds: UInt64Array,
    positions: Int64Array,
) -> Verified:  # fmt: skip
    """Rule 2. `log_p`: float32 [B, Q, V], of `policy_log_probs`; seeds [B], positions [B, Q] on the host."""
    nodes = drafted(lengths, draft.shape[1])
    above, draft = padded_parents(parents, nodes), draft.where(nodes, 0)
    p = at(log_p, above, draft).exp()
    p, tried = (p, 0.0) if parents is None else _tried(p, draft, above, nodes)
    u = uniform(row_keys(seeds[:, None], positions - 1, ACCEPT), draft)
    # u < p(x) / (1 - mass of the siblings tried before)
    path, count = accepted_path(u * (1 - tried) < p, parents, lengths)
    last = path.gather(1, count[:, None])
    p_last = _row(log_p, last)
    removed = torch.zeros_like(p).masked_fill(nodes & (above == last), NEG_INF)
    rest = p_last + torch.zeros_like(p_last).scatter_reduce_(1, draft, removed, "amin")
    return _finish(path, count, draft, _draw(rest, p_last, seeds, positions, last))


def at(log_p: Tensor, nodes: Tensor, tokens: Tensor) -> Tensor:
    """Entries of log_p [B, Q, V] at nodes and tokens [B, K], such as `at(log_p, path, tokens)`."""
    return log_p.flatten(1).gather(1, nodes * log_p.shape[-1] + tokens)


def _tried(p: Tensor, draft: Tensor, above: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Each draft's probability, 0 if an earlier sibling has its token, and the mass of earlier siblings."""
    earlier = (above[:, :, None] == above[:, None, :]).tril_(-1) & nodes[:, None, :]
    repeated = (earlier & (draft[:, :, None] == draft[:, None, :])).any(dim=-1)
    p = p.masked_fill(repeated, 0)
    return p, (earlier * p[:, None, :]).sum(dim=-1).clamp_(max=1)


def _row(log_p: Tensor, node: Tensor) -> Tensor:
    return log_p.gather(1, node[:, :, None].expand(-1, -1, log_p.shape[-1])).squeeze(1)


def _draw(rest: Tensor, p: Tensor, seeds: UInt64Array, positions: Int64Array, node: Tensor) -> Tensor:
    """Sample exp(rest) [B, V]; where rounding left it empty (probability < 1e-6), sample p instead."""
    host_node = node.cpu().numpy()
    keys = row_keys(seeds, positions[range(len(seeds)), host_node[:, 0]], RESIDUAL)
    rest = rest.where(rest.amax(dim=-1, keepdim=True) > NEG_INF, p)
    return (rest + gumbel(keys, p.shape[-1], p.device)).argmax(dim=-1, keepdim=True)


def _finish(path: Tensor, count: Tensor, draft: Tensor, final: Tensor) -> Verified:
    """The accepted drafts, then the token drawn after the last of them."""
    tokens = draft.gather(1, path).roll(-1, dims=1)
    return Verified(path, count, tokens.scatter(1, count[:, None], final))
