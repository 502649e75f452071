"""The rule of SRT (arXiv 2601.09083): raw shares in the prompt's own tree, no calibration, no whole-batch budget.

Match: the longest suffix of the text that the tree continues, of length q. Draft: descendants in the order of the
product of their edges' shares, `count(v) / sum of the siblings' counts`, until B(q) nodes; as a chain, the most
frequent child. All checkpoints count the same. The paper gives no B(q): here it is `draft_per_match * q`, rounded, at
least 1 and at most the draft limit, so that a longer match is trusted further (SuffixDecoding bounds drafts alike).
Kinder than the paper in one thing: where the text of a descendant ends, the next shorter suffix goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rolltree._native import Drafts
from rolltree.config import CacheConfig, DraftConfig
from rolltree.replay.drafters.tree import RolltreeDrafter
from rolltree.types import DraftBatch, Int32Array, Int64Array

if TYPE_CHECKING:
    from rolltree.store import RolloutStore


class SrtDrafter(RolltreeDrafter):
    """Raw shares of one tree, cut by the length of the match."""

    budgeted = False

    def __init__(
        self, cache: CacheConfig, draft: DraftConfig, *, draft_per_match: float = 1.0, store: RolloutStore | None = None
    ) -> None:
        super().__init__(cache, draft, store=store)
        self._config, self._per_match = draft, draft_per_match
        self._out = Drafts(1, draft.max_draft)

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""
        rows, tree = len(handles), self._config.shape == "tree"
        if rows > len(self._out.lengths):
            self._out = Drafts(2 * rows, self._config.max_draft)
        bound = np.clip(np.rint(self._per_match * self.cache.matches(handles)), 1, limits).astype(np.int32)
        self.cache.draft(handles, bound, self._out, min_survival=0.0, min_match=1, tree=tree, raw=True)
        return DraftBatch(
            tokens=self._out.tokens[:rows], parents=self._out.parents[:rows], lengths=self._out.lengths[:rows],
            survival=self._out.survival[:rows], is_chain=not tree,
        )  # fmt: skip

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""
        self.cache.append(handles, tokens, offsets)

    def sources(self) -> dict[str, tuple[int, int]]:
        """See ReplayDrafter; one tree, one source."""
        return {}
