"""From a layout to the tensors of one packed forward: token ids, positions, cache places and visibility.

Decides what each query sees: everything committed of its own row, and its own ancestors. Does not run the
model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rolltree.engine.attention import AttentionPlan
from rolltree.engine.layout import Layout, Trees
from rolltree.engine.slots import SlotCache
from rolltree.types import Int64Array

_WIDTH_STEP = 16  # cache columns are read in multiples of this: aligned rows, fewer distinct shapes


@dataclass(frozen=True, slots=True)
class ForwardInput:
    """Arguments of one packed forward."""

    token_ids: Tensor
    """Shape [1, N], int64."""
    positions: Tensor
    """Shape [1, N], int64."""
    attention: AttentionPlan


class Planner:
    """Builds forward inputs for one cache and model."""

    def __init__(self, cache: SlotCache, group: int) -> None:
        self.cache, self.group, self.device = cache, group, cache.data.device
        self._columns = torch.arange(cache.length, device=self.device)

    def plan(
        self,
        layout: Layout,
        tokens: Int64Array,
        rows: Int64Array | None,
        start: Int64Array,
        trees: Trees | None,
    ) -> ForwardInput:
        """Input for packed `tokens` [N] of cache rows `rows` [B] (None: 0..B-1) whose first `start` [B]
        columns count.
        """
        column = start[layout.row_of] + layout.node
        cache_row = layout.row_of if rows is None else rows[layout.row_of]
        place = cache_row * self.cache.length + column
        position = column if trees is None else (start[:, None] + trees.depth).ravel()[layout.cells]
        host = [tokens, position, place]
        if layout.ragged:
            host += [layout.grid.ravel(), layout.cells]
        ids, positions, places, *pads = self._upload(host)
        width = min(-(-(int(start.max()) + layout.queries) // _WIDTH_STEP) * _WIDTH_STEP, self.cache.length)
        attention = AttentionPlan(
            cache=self.cache,
            write=places,
            rows=slice(0, len(start)) if rows is None else self._upload([rows])[0],
            width=width,
            queries=layout.queries,
            gather=pads[0] if pads else None,
            scatter=pads[1] if pads else None,
            bias=self._bias(layout, start, trees, width),
        )
        return ForwardInput(ids[None], positions[None], attention)

    def _upload(self, arrays: list[Int64Array]) -> list[Tensor]:
        """Device tensors of host arrays by one transfer (none on the CPU)."""
        if self.device.type == "cpu":
            return [torch.from_numpy(np.ascontiguousarray(a, np.int64)) for a in arrays]
        flat = torch.from_numpy(np.concatenate(arrays)).pin_memory().to(self.device, non_blocking=True)
        return list(torch.split(flat, [len(a) for a in arrays]))

    def _bias(self, layout: Layout, start: Int64Array, trees: Trees | None, width: int) -> Tensor:
        """Additive mask [B, 1, group * Q, width]."""
        queries = layout.queries
        first = torch.from_numpy(start).to(self.device, non_blocking=True)
        columns = self._columns[:width]
        if trees is None:
            last = first[:, None] + self._columns[:queries]
            hidden = columns > last[:, :, None]
        else:
            hidden = ~self._tree_visible(first, columns, trees)
        bias = torch.zeros(hidden.shape, dtype=self.cache.data.dtype, device=self.device)
        bias = bias.masked_fill_(hidden, float("-inf")).unsqueeze(1)
        if queries == 1:
            return bias.expand(-1, -1, self.group, -1)
        return bias.repeat(1, 1, self.group, 1) if self.group > 1 else bias

    def _tree_visible(self, first: Tensor, columns: Tensor, trees: Trees) -> Tensor:
        """Whether query [B, Q] sees column [width]: committed ones and ancestors."""
        ancestors = torch.from_numpy(trees.ancestors).to(self.device, non_blocking=True)
        node = columns - first[:, None]
        inside = (node >= 0) & (node < ancestors.shape[2])
        index = node.clamp(0, ancestors.shape[2] - 1)[:, None, :].expand(-1, ancestors.shape[1], -1)
        return (node < 0)[:, None, :] | (ancestors.gather(2, index) & inside[:, None, :])
