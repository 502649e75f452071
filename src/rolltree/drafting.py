"""The drafter that an engine plugs in: drafts from a cache, cut by the whole-batch budget, judged by what was emitted.

Implements `rolltree.types.Drafter`. Owns the reusable draft arrays and the statistics; trees belong to the cache,
acceptance estimates to the native core. Not thread-safe: one drafter an engine (several may share one cache).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from rolltree._native import Drafts
from rolltree.budget import CostModel, allocate
from rolltree.cache import RolloutCache
from rolltree.config import DraftConfig
from rolltree.metrics import SOURCES, DraftStats
from rolltree.tokens import as_integers
from rolltree.types import DraftBatch, Float32Array, Int32Array, Int64Array, TokenIds

Budget = Callable[[Float32Array, Int32Array], Int32Array]
"""Takes survival [B, K] and the lengths drafted, int32 [B]; returns those to verify, int32 [B], at most as long."""

_DOUBT = 0.5
"""Nodes of half the survival that pays are drafted still, if not verified: too low an estimate must be found out."""


_NONE: Int64Array = np.zeros(0, np.int64)


class _Buffers:
    """Reusable memory for `rows` requests; attributes are views of the native arrays."""

    def __init__(self, rows: int, width: int) -> None:
        self.rows = rows
        self.native = Drafts(rows, width)
        self.tokens, self.parents = self.native.tokens, self.native.parents
        self.survival, self.lengths = self.native.survival, self.native.lengths


class TreeDrafter:
    """Drafts each request from its prompt's tree.

    Args:
        cache: where the trees live; made with default settings when None.
        config: how far and how boldly to draft.
        cost: the step-cost model of the engine; None verifies everything that is drafted.

    """

    def __init__(
        self, cache: RolloutCache | None = None, config: DraftConfig | None = None, *, cost: CostModel | None = None
    ) -> None:
        self.cache = cache or RolloutCache()
        self.config = config or DraftConfig()
        self.cost = cost
        self.stats = DraftStats()
        self._buffers = _Buffers(64, max(1, self.config.max_draft))
        self._drafted: Int64Array = _NONE  # handles of the last draft, in its order
        self._verified: Int32Array = _NONE.astype(np.int32)
        self._source_sums = self.cache.source_sums()

    def open(
        self,
        prompt: TokenIds,
        *,
        key: str | None = None,
        seed: int | None = None,
        coupled: bool = False,
        run_ahead: bool = False,
    ) -> int:
        """Start a request; see `RolloutCache.open`."""
        return self.cache.open(prompt, key=key, seed=seed, coupled=coupled, run_ahead=run_ahead)

    def draft(self, handles: ArrayLike, limits: ArrayLike, *, budget: Budget | None = None) -> DraftBatch:
        """Draft for each request, at most `limits[b]` nodes, fewer where the budget says so.

        Args:
            handles: int64 [B], live sessions; any whole numbers will do, here and below.
            limits: int32 [B].
            budget: cuts the drafts; None: `allocate` does, by the cost model.

        Returns:
            Views that stay valid until the next call of `draft`.

        """
        handles, limits = as_integers(handles, np.int64, "handles"), as_integers(limits, np.int32, "limits")
        rows, config = len(handles), self.config
        if rows > self._buffers.rows:
            self._buffers = _Buffers(rows + rows // 2, max(1, config.max_draft))
        out, tree = self._buffers, config.shape == "tree"
        limits = np.minimum(limits, config.max_draft).astype(np.int32, copy=False)
        floor = config.min_survival if budget is not None else self.floor(rows)
        self.cache.draft(handles, limits, out.native, min_survival=floor, min_match=config.min_match, tree=tree)
        self._drafted = handles
        lengths, survival = out.lengths[:rows], out.survival[:rows]
        self._verified = (budget or self._budget)(survival, lengths)
        return DraftBatch(
            tokens=out.tokens[:rows],
            parents=out.parents[:rows],
            lengths=self._verified,
            survival=survival,
            is_chain=not tree,
        )

    def verified(self, handles: ArrayLike, lengths: ArrayLike) -> None:
        """Say how many tokens of the last draft were verified, where the engine took fewer than `draft` returned.

        Args:
            handles: int64 [B]; those that were not in the last draft are ignored.
            lengths: int32 [B].

        """
        handles, lengths = as_integers(handles, np.int64, "handles"), as_integers(lengths, np.int32, "lengths")
        rows = _find(handles, self._drafted)
        known = rows >= 0
        self._verified[rows[known]] = np.minimum(self._verified[rows[known]], lengths[known])

    def _budget(self, survival: Float32Array, lengths: Int32Array) -> Int32Array:
        return lengths.copy() if self.cost is None else allocate(survival, lengths, self.cost)

    def floor(self, rows: int) -> float:
        """Return the survival below which nothing is drafted in a batch of `rows` requests.

        Drafting what cannot pay would only cost time: a batch that is bound by compute drafts next to nothing.
        """
        if self.cost is None or not rows:
            return self.config.min_survival
        return max(self.config.min_survival, min(_DOUBT * self.cost.break_even(rows), 1.0))

    def advance(self, handles: ArrayLike, tokens: ArrayLike, offsets: ArrayLike) -> None:
        """Commit the tokens emitted in this step and learn from the verdicts.

        Args:
            handles: int64 [B]; those that were in the last `draft` are judged, all are extended.
            tokens: int32 [n], all emitted tokens.
            offsets: int32 [B + 1], row b emitted `tokens[offsets[b]:offsets[b + 1]]`.

        """
        handles = as_integers(handles, np.int64, "handles")
        stats = self.stats
        stats.steps += 1
        stats.row_steps += len(handles)
        rows, verified = _find(handles, self._drafted), self._verified
        self._drafted, self._verified = _NONE, _NONE.astype(np.int32)  # a draft is judged once, also when this fails
        accepted = self.cache.settle(handles, self._buffers.native, rows, verified, tokens, offsets)
        stats.tokens += np.size(tokens)
        stats.drafted += int(verified[rows[rows >= 0]].sum())
        stats.accepted += int(accepted.sum())

    def close(self, handle: int, *, keep: bool = True) -> None:
        """End a request; `keep=False` forgets its rollout."""
        self.cache.close(handle, keep=keep)

    def count_sources(self) -> None:
        """Bring the sums by source (of the whole cache) in `stats` up to date."""
        now = self.cache.source_sums()
        for name, (drafted, accepted), (drafted0, accepted0) in zip(SOURCES, now, self._source_sums, strict=True):
            self.stats.drafted_by_source[name] += drafted - drafted0
            self.stats.accepted_by_source[name] += accepted - accepted0
        self._source_sums = now

    def snapshot(self) -> DraftStats:
        """Return a copy of the statistics, sums by source included."""
        self.count_sources()
        return self.stats.copy()


def _find(wanted: Int64Array, among: Int64Array) -> Int32Array:
    """Where each handle stands in `among`, -1 where it does not."""
    if np.array_equal(wanted, among):
        return np.arange(len(wanted), dtype=np.int32)
    if not len(among):
        return np.full(len(wanted), -1, np.int32)
    order = np.argsort(among)
    place = order[np.searchsorted(among, wanted, sorter=order).clip(max=len(among) - 1)]
    return np.where(among[place] == wanted, place, -1).astype(np.int32)
