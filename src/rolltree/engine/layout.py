"""How a step's tokens lie: packed side by side for the linear layers, as a rectangle for attention and
verification.

Host arithmetic in numpy only, a few calls per step whatever the number of rows. A row's node 0 is its last
committed token, nodes 1.. are its draft; a prefill piece is a chain of prompt tokens. Invariant: parents come
before children.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rolltree.types import Int64Array

SPLIT_GAIN = 0.8  # one attention call more must save a fifth of the cells
COPY_CELLS = 3  # gathering a row's keys and values costs about as much as attending to them with 3 queries


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of attention: nodes `first` .. `first + queries - 1` of some rows."""

    rows: Int64Array | None
    """Shape [b]: which rows; None: all of them."""
    first: int
    queries: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Index arrays of B rows with `counts[b]` nodes each, N in all, Q at most."""

    counts: Int64Array
    """Shape [B]: nodes of each row, at least 1."""
    queries: int
    """Q: the largest count."""
    row_of: Int64Array
    """Shape [N]: row of each packed node."""
    node: Int64Array
    """Shape [N]: index of each packed node in its row."""
    grid: Int64Array
    """Shape [B, Q]: packed index of each cell; cells past the count repeat the row's last node."""
    blocks: tuple[Block, ...]
    """Rectangles that cover all nodes: one, or where few rows have long drafts, a second for what these have more."""

    @property
    def ragged(self) -> bool:
        """False when every row has Q nodes, so that packed order is rectangle order."""
        return self.grid.size != len(self.node)

    @property
    def padded(self) -> int:
        """Cells of all blocks, at least N."""
        return sum(b.queries * (len(self.counts) if b.rows is None else len(b.rows)) for b in self.blocks)

    @classmethod
    def of(cls, counts: Int64Array) -> Layout:
        """Lay out rows of these counts."""
        rows, queries = len(counts), int(counts.max())
        total = int(counts.sum())
        packed = np.arange(total)
        if total == rows * queries:
            row_of, node = np.divmod(packed, queries)
            return cls(counts, queries, row_of, node, packed.reshape(rows, queries), (Block(None, 0, queries),))
        offsets = np.cumsum(counts) - counts
        row_of = np.repeat(np.arange(rows), counts)
        grid = offsets[:, None] + np.minimum(np.arange(queries), counts[:, None] - 1)
        return cls(counts, queries, row_of, packed - offsets[row_of], grid, _blocks(counts, queries))

    @property
    def cells(self) -> Int64Array:
        """Shape [N]: flat rectangle cell of each packed node."""
        return self.row_of * self.queries + self.node


def _blocks(counts: Int64Array, queries: int) -> tuple[Block, ...]:
    """One block, or the cheapest cut into a wide one of few queries and a small one of many."""
    cuts = np.arange(1, queries)
    longer = (counts[:, None] > cuts).sum(axis=0)
    cost = len(counts) * cuts + longer * (queries - cuts + COPY_CELLS)
    best = int(cost.argmin()) if queries > 1 else 0
    if queries == 1 or cost[best] > SPLIT_GAIN * len(counts) * queries:
        return (Block(None, 0, queries),)
    cut = int(cuts[best])
    return Block(None, 0, cut), Block(np.flatnonzero(counts > cut), cut, queries - cut)


@dataclass(frozen=True, slots=True)
class Trees:
    """Shape of tree drafts over a layout's rectangle; chains need none."""

    parents: Int64Array
    """Shape [B, Q]: parent node in the same row; 0 for node 0 and for cells past the count."""
    depth: Int64Array
    """Shape [B, Q]: distance from node 0."""
    ancestors: npt.NDArray[np.bool_]
    """Shape [B, Q, Q]: whether node j is node i or one of its ancestors."""

    @classmethod
    def of(cls, parents: Int64Array) -> Trees:
        """Depths and ancestors from `parents` [B, Q]; O(Q) numpy calls."""
        rows, queries = parents.shape
        depth = np.zeros_like(parents)
        ancestors = np.zeros((rows, queries, queries), np.bool_)
        ancestors[:, 0, 0] = True
        every = np.arange(rows)
        for i in range(1, queries):
            parent = parents[:, i]
            depth[:, i] = depth[every, parent] + 1
            ancestors[:, i] = ancestors[every, parent]
            ancestors[:, i, i] = True
        return cls(parents, depth, ancestors)
