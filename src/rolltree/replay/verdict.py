"""Verification against the record: a draft token is accepted when it equals the recorded one and its parent was.

The recorded token is a sample of the policy, so the acceptance of a one-hot draft is estimated without bias. Pure
functions on arrays of all rows of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rolltree.types import DraftBatch, Int32Array, Int64Array

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ReplayVerdict:
    """What became of the drafts of B rows, K columns."""

    accepted: Int64Array
    """Shape [B]: accepted draft tokens."""
    depth: Int64Array
    """Shape [n], for every verified node, row by row: its place in the draft, 0 the first token."""
    good: BoolArray
    """Shape [n]: whether the node was accepted."""


def verify(batch: DraftBatch, truth: Int32Array) -> ReplayVerdict:
    """Judge drafts by the recorded continuation.

    Args:
        batch: drafts of B rows; the first `lengths[b]` nodes of a row are verified.
        truth: int32 [B, K + 1], the recorded tokens; -1 past the end.

    """
    width = min(int(batch.lengths.max(initial=0)), truth.shape[1] - 1)
    column = np.arange(width)
    inside = column < batch.lengths[:, None]
    tokens = batch.tokens[:, :width]
    if batch.is_chain:
        good = np.logical_and.accumulate(inside & (tokens == truth[:, :width]), axis=1)
        depth = np.broadcast_to(column, inside.shape)
    else:
        good, depth = _walk(tokens, batch.parents[:, :width], inside, truth)
    return ReplayVerdict(good.sum(axis=1), depth[inside], good[inside])


def _walk(
    tokens: Int32Array, parents: Int32Array, inside: BoolArray, truth: Int32Array
) -> tuple[BoolArray, Int64Array]:
    """Follow the recorded tokens through every row's tree at once; parents come before children."""
    rows, width = tokens.shape
    row = np.arange(rows)
    at, count = np.full(rows, -1, np.int64), np.zeros(rows, np.int64)
    good, depth = np.zeros((rows, width), np.bool_), np.zeros((rows, width), np.int64)
    for j in range(width):
        parent = np.where(inside[:, j], parents[:, j], -1)
        depth[:, j] = np.where(parent < 0, 0, depth[row, parent] + 1)
        hit = inside[:, j] & (parent == at) & (tokens[:, j] == truth[row, count])
        good[:, j] = hit
        at[hit] = j
        count += hit
    return good, depth
