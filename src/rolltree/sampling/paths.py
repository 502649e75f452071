"""From accepted nodes to the accepted path, for all rows at once in a fixed number of tensor operations.

Knows nothing of probabilities. Layout as in `rolltree.sampling.verification`; padding may hold anything.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drafted(lengths: Tensor, width: int) -> Tensor:
    """bool [B, width]: the nodes 1..lengths[b] of each row."""
    node = torch.arange(width, device=lengths.device)
    return (node > 0) & (node <= lengths.unsqueeze(-1))


def padded_parents(parents: Tensor | None, nodes: Tensor) -> Tensor:
    """Parents, int64 [B, Q], of the drafted `nodes`; the root and padding get 0, chains (None) get i - 1."""
    if parents is None:
        return torch.arange(-1, nodes.shape[1] - 1, device=nodes.device).clamp_(min=0).expand(nodes.shape)
    return parents.where(nodes, 0)


def accepted_path(ok: Tensor, parents: Tensor | None, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Path int64 [B, Q] and count int64 [B]: from the root, always to the first ok child.

    `ok` is bool [B, Q]: the node would be accepted if its parent is and no earlier sibling was.
    """
    width = ok.shape[1]
    nodes = drafted(lengths, width)
    ok = ok & nodes
    if parents is None:
        path = torch.arange(width, device=ok.device).expand(ok.shape)
        return path, ok[:, 1:].cumprod(dim=1).sum(dim=1)
    ok = _first_child(ok, padded_parents(parents, nodes))
    on_path = _with_accepted_ancestors(ok, padded_parents(parents, nodes))
    # One node a depth is left, and parents come before children: index order is path order.
    path = on_path.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    return path, on_path.sum(dim=1) - 1


def _first_child(ok: Tensor, parents: Tensor) -> Tensor:
    """Of the ok children of a parent only the first; duplicate siblings must not both be taken."""
    node = torch.arange(ok.shape[1], device=ok.device).expand(ok.shape)
    candidate = node.where(ok, ok.shape[1])
    first = torch.full_like(candidate, ok.shape[1]).scatter_reduce_(1, parents, candidate, "amin")
    return ok & (first.gather(1, parents) == node)


def _with_accepted_ancestors(ok: Tensor, parents: Tensor) -> Tensor:
    """Nodes that are ok up to the root (the root included), by pointer doubling: round k looks 2**k nodes up."""
    ok = ok.clone()
    ok[:, 0] = True
    ancestor = parents
    for _ in range(max(ok.shape[1] - 2, 0).bit_length()):
        ok = ok & ok.gather(1, ancestor)
        ancestor = ancestor.gather(1, ancestor)
    return ok
