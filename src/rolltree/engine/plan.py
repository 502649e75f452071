"""From a layout to the tensors of one packed forward: token ids, positions, cache places and visibility.

Decides what each query sees: everything committed of its own row, and its own ancestors. Does not run the
model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rolltree.engine.attention import AttentionPlan, Rectangle
from rolltree.engine.kv_cache import SlotCache
from rolltree.engine.layout import Block, Layout, Trees
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
        ids, positions, places = self._upload([tokens, position, place])
        width = min(-(-(int(start.max()) + layout.queries) // _WIDTH_STEP) * _WIDTH_STEP, self.cache.length)
        rectangles = tuple(self._rectangle(layout, block, rows, start, trees, width) for block in layout.blocks)
        attention = AttentionPlan(self.cache, places, width, rectangles)
        return ForwardInput(ids[None], positions[None], attention)

    def _rectangle(
        self, layout: Layout, block: Block, rows: Int64Array | None, start: Int64Array, trees: Trees | None, width: int
    ) -> Rectangle:
        """Tensors of one block."""
        some, columns = block.rows, slice(block.first, block.first + block.queries)
        part = slice(None) if some is None else some
        bias = self._bias(start[part], columns, None if trees is None else trees.ancestors[part][:, columns], width)
        cache_rows: slice | Tensor = slice(0, len(start))
        if rows is not None or some is not None:
            cache_rows = self._upload([np.arange(len(start))[part] if rows is None else rows[part]])[0]
        if not layout.ragged:
            return Rectangle(cache_rows, block.queries, None, None, None, bias)
        grid = layout.grid[part, columns]
        cells = np.flatnonzero(np.arange(block.first, columns.stop) < layout.counts[part][:, None])
        index = [grid.ravel(), cells]
        if len(layout.blocks) > 1:
            index.append(grid.ravel()[cells])
        gather, kept, *nodes = self._upload(index)
        return Rectangle(cache_rows, block.queries, gather, kept, nodes[0] if nodes else None, bias)

    def _upload(self, arrays: list[Int64Array]) -> list[Tensor]:
        """Device tensors of host arrays by one transfer (none on the CPU)."""
        if self.device.type == "cpu":
            return [torch.from_numpy(np.ascontiguousarray(a, np.int64)) for a in arrays]
        flat = torch.from_numpy(np.concatenate(arrays)).pin_memory().to(self.device, non_blocking=True)
        return list(torch.split(flat, [len(a) for a in arrays]))

    def _bias(self, start: Int64Array, nodes: slice, ancestors: npt.NDArray[np.bool_] | None, width: int) -> Tensor:
        """Additive mask [b, 1, group * q, width] of the nodes `nodes` of rows that start at `start` [b]."""
        first = torch.from_numpy(start).to(self.device, non_blocking=True)
        columns = self._columns[:width]
        if ancestors is None:
            last = first[:, None] + self._columns[nodes]
            hidden = columns > last[:, :, None]
        else:
            hidden = ~self._tree_visible(first, columns, ancestors)
        bias = torch.zeros(hidden.shape, dtype=self.cache.data.dtype, device=self.device)
        bias = bias.masked_fill_(hidden, float("-inf")).unsqueeze(1)
        if bias.shape[2] == 1:
            return bias.expand(-1, -1, self.group, -1)
        return bias.repeat(1, 1, self.group, 1) if self.group > 1 else bias

    def _tree_visible(self, first: Tensor, columns: Tensor, ancestors: npt.NDArray[np.bool_]) -> Tensor:
        """Whether query [b, q] sees column [width]: committed ones, and its ancestors [b, q, Q]."""
        above = torch.from_numpy(np.ascontiguousarray(ancestors)).to(self.device, non_blocking=True)
        node = columns - first[:, None]
        inside = (node >= 0) & (node < above.shape[2])
        index = node.clamp(0, above.shape[2] - 1)[:, None, :].expand(-1, above.shape[1], -1)
        return (node < 0)[:, None, :] | (above.gather(2, index) & inside[:, None, :])
