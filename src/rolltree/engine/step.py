"""One verify step as data: what goes into the forward, and what was decided after it. Host arrays; no
behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rolltree.engine.drafts import CheckedDrafts
from rolltree.engine.layout import Layout, Trees
from rolltree.engine.running import Rows
from rolltree.types import Int64Array


@dataclass(frozen=True, slots=True)
class VerifyStep:
    """The B running rows with their drafts."""

    layout: Layout
    tokens: Int64Array
    """Shape [N]: last committed token of each row, then its draft."""
    start: Int64Array
    """Shape [B]: cache columns of each row that are committed."""
    trees: Trees | None
    """None when every draft is a chain."""
    positions: Int64Array
    """Shape [N]: index among the generated tokens of the token drawn after each node."""

    @classmethod
    def of(cls, rows: Rows, drafts: CheckedDrafts) -> VerifyStep:
        """Put the committed token of each row before its draft."""
        n = rows.count
        layout = Layout.of(drafts.lengths + 1)
        length, every = rows.length[:n], np.arange(n)
        grid = np.concatenate((rows.tokens[every, length - 1][:, None], drafts.tokens), axis=1)
        tokens = grid[:, : layout.queries][layout.row_of, layout.node].astype(np.int64)
        trees = None if drafts.parents is None else _trees(drafts.parents, layout)
        depth = layout.node if trees is None else trees.depth.ravel()[layout.cells]
        return cls(layout, tokens, length - 1, trees, (length - rows.prompt[:n])[layout.row_of] + depth)


def _trees(parents: Int64Array, layout: Layout) -> Trees:
    padded = np.zeros((len(parents), layout.queries), np.int64)
    drafted = np.arange(1, layout.queries) < layout.counts[:, None]
    padded[:, 1:] = np.where(drafted, parents[:, : layout.queries - 1] + 1, 0)
    return Trees.of(padded)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step emitted: row b emits `tokens[b, :counts[b]]`."""

    counts: Int64Array
    """Shape [B]: accepted drafts and one."""
    path: Int64Array
    """Shape [B, Q]: node after which each token was drawn."""
    tokens: Int64Array
    """Shape [B, Q]."""
    logprobs: npt.NDArray[np.float32]
    """Shape [B, Q]; NaN where the model's logits were not finite."""
    bad_nodes: Int64Array
    """Packed nodes with NaN or infinite logits; empty in a healthy step."""
