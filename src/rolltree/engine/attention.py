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
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from rolltree.engine.kv_cache import SlotCache
from rolltree.errors import InvalidInputError

NAME = "rolltree"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")


@dataclass(frozen=True, slots=True)
class Rectangle:
    """The queries of b rows with q nodes each, packed nodes gathered into cells."""

    rows: slice | Tensor
    """The cache rows, in the order of the cells."""
    queries: int
    """q."""
    gather: Tensor | None
    """Shape [b * q], int64: packed index of each cell; None: the cells are the packed nodes."""
    cells: Tensor | None
    """Shape [n], int64: the cells that are nodes, the others are padding; None with `gather`."""
    nodes: Tensor | None
    """Shape [n], int64: packed index of these; None where the plan has this rectangle only."""
    bias: Tensor
    """Shape [b, 1, group * q, width]: 0 where visible, else -inf; group = query heads per key/value head."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where one packed forward writes keys and values, and what each query sees."""

    cache: SlotCache
    """The slot cache that is written and read."""
    write: Tensor
    """Shape [N], int64: flat cache place of each packed token."""
    width: int
    """Cache columns that are read."""
    rectangles: tuple[Rectangle, ...]
    """Together they hold every packed token once."""


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
    plan = _checked(rolltree_plan, attention_mask, extra)
    layer: int = module.layer_idx  # type: ignore[assignment]
    plan.cache.write(layer, plan.write, key, value)
    packed = query[0].transpose(0, 1)
    parts = [_attend(plan, part, layer, packed, scaling) for part in plan.rectangles]
    out = parts[0]
    if len(parts) > 1:
        out = torch.empty_like(packed, memory_format=torch.contiguous_format)
        for rectangle, part in zip(plan.rectangles, parts, strict=True):
            out.index_copy_(0, cast("Tensor", rectangle.nodes), part)
    return out.unsqueeze(0), None


def _attend(plan: AttentionPlan, part: Rectangle, layer: int, packed: Tensor, scaling: float | None) -> Tensor:
    """Attention of a rectangle's nodes, [n, heads, head_dim], for packed queries [N, heads, head_dim]."""
    keys, values = plan.cache.read(layer, part.rows, plan.width)
    (_, heads, dim), (batch, kv_heads) = packed.shape, keys.shape[:2]
    cells = packed if part.gather is None else packed.index_select(0, part.gather)
    # Heads that share keys become more queries of one head: no copy of K/V for grouped-query models.
    if part.queries == 1:
        grid = cells.reshape(batch, kv_heads, -1, dim)
    else:
        grid = cells.view(batch, part.queries, heads, dim).transpose(1, 2).reshape(batch, kv_heads, -1, dim)
    out = scaled_dot_product_attention(grid.to(keys.dtype), keys, values, attn_mask=part.bias, scale=scaling)
    if part.queries == 1:
        out = out.reshape(batch, heads, dim)
    else:
        out = out.reshape(batch, heads, part.queries, dim).transpose(1, 2).reshape(-1, heads, dim)
    return (out if part.cells is None else out.index_select(0, part.cells)).to(packed.dtype)


def _checked(plan: AttentionPlan | None, mask: Tensor | None, extra: dict[str, Any]) -> AttentionPlan:
    if plan is None:
        raise InvalidInputError("model", "attention call without a plan", "a family that hands keyword arguments on")
    if mask is not None and mask.numel() != 1:  # the runner's mask has one element, and is ignored
        raise InvalidInputError("model", "attention with a mask of its own", "a family with plain causal attention")
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
