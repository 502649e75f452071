"""Plain data shared by all layers: token arrays, draft batches, rollouts, and the drafter protocol.

Holds no behaviour beyond shape checks, imports nothing but numpy. Token arrays are int32 and C-contiguous everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
Float32Array: TypeAlias = npt.NDArray[np.float32]
TokenIds: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftBatch:
    """Drafts of one engine step, one row a request.

    Row `b` holds `lengths[b]` nodes, parents before children. A chain has `parents[b, i] == i - 1`.
    """

    tokens: Int32Array
    """Shape [B, K]: drafted token ids; entries past `lengths[b]` are undefined."""
    parents: Int32Array
    """Shape [B, K]: index of the parent node in the same row; -1 hangs on the last committed token."""
    lengths: Int32Array
    """Shape [B]: number of nodes of each row, 0..K."""
    survival: Float32Array
    """Shape [B, K]: estimated probability that the node and all its ancestors are accepted."""
    is_chain: bool
    """True when every row is a chain."""


@runtime_checkable
class Drafter(Protocol):
    """What an engine needs of a source of drafts. Handles are int64 and never re-used."""

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """Start a request; `seed` and `coupled` let the drafter use the sampler's own noise at forks."""

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """Draft at most `limits[b]` nodes for each request; the cost over the batch is the drafter's concern."""

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """Commit the tokens emitted in this step: row `b` emitted `tokens[offsets[b]:offsets[b + 1]]`."""

    def close(self, handle: int, *, keep: bool = True) -> None:
        """End a request; `keep=False` forgets its rollout (an aborted or failed request)."""
