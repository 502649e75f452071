"""Attention of a packed batch over the slot cache, registered with transformers under the name "rolltree".

A step's tokens of all requests lie side by side in one row, so linear layers see no padding. Only the
attention itself needs a rectangle: queries are gathered to [B, Q] when rows differ in length. transformers
builds no mask for an attention name that has no mask function, and hands unknown keyword arguments of
`forward` through to the attention: the plan travels that way, the model keeps no state of ours. Does not
decide what is visible; `plan.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from rolltree.engine.slots import SlotCache
from rolltree.errors import InvalidInputError

NAME = "rolltree"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where one packed forward writes keys and values, and what each query sees."""

    cache: SlotCache
    """The slot cache that is written and read."""
    write: Tensor
    """Shape [N], int64: flat cache place of each packed token."""
    rows: slice | Tensor
    """The B cache rows that take part, in packed order."""
    width: int
    """Cache columns that are read."""
    queries: int
    """Q: the largest number of tokens of one row."""
    gather: Tensor | None
    """Shape [B * Q], int64: packed index of each rectangle cell (clamped); None when every row has Q tokens.
    """
    scatter: Tensor | None
    """Shape [N], int64: rectangle cell of each packed token; None with `gather`."""
    bias: Tensor
    """Shape [B, 1, group * Q, width]: 0 where visible, -inf elsewhere; group = query heads per key/value
    head.
    """


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rolltree_plan: AttentionPlan | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Write K/V of packed tokens and attend: [1, heads, N, head_dim] in, [1, N, heads, head_dim] out."""
    plan = _checked(rolltree_plan, extra)
    layer: int = module.layer_idx  # type: ignore[assignment]
    plan.cache.write(layer, plan.write, key, value)
    keys, values = plan.cache.read(layer, plan.rows, plan.width)
    heads, dim, batch, kv_heads = query.shape[1], query.shape[3], keys.shape[0], keys.shape[1]
    packed = query[0].transpose(0, 1)
    if plan.gather is not None:
        packed = packed.index_select(0, plan.gather)
    grid = packed.view(batch, plan.queries, heads, dim).transpose(1, 2)
    # Heads that share keys become more queries of one head: no copy of K/V for grouped-query models.
    grid = grid.reshape(batch, kv_heads, -1, dim).to(keys.dtype)
    out = scaled_dot_product_attention(grid, keys, values, attn_mask=plan.bias, scale=scaling)
    cells = out.view(batch, heads, plan.queries, dim).transpose(1, 2).reshape(-1, heads, dim)
    if plan.scatter is not None:
        cells = cells.index_select(0, plan.scatter)
    return cells.unsqueeze(0).to(query.dtype), None


def _checked(plan: AttentionPlan | None, extra: dict[str, Any]) -> AttentionPlan:
    if plan is None:
        raise InvalidInputError("model", "attention call without a plan", "a family that hands keyword arguments on")
    for name in _UNSUPPORTED:
        if extra.get(name) is not None:
            raise InvalidInputError("model", f"attention with {name}", "a family with plain causal attention")
    return plan


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[str]:
    """Use attention `name` inside the block, which gets the name that stood before."""
    before: str = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield before
    finally:
        model.config._attn_implementation = before


def register() -> None:
    """Make slot attention known to transformers; harmless when repeated."""
    AttentionInterface.register(NAME, slot_attention)
