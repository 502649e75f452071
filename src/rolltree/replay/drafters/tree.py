"""Drafters over rolltree's own cache: ours, ours without live text (HistoSpec's idea), and the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rolltree.budget import CostModel
from rolltree.cache import RolloutCache
from rolltree.config import CacheConfig, DraftConfig
from rolltree.drafting import TreeDrafter
from rolltree.metrics import SOURCES
from rolltree.replay.drafters.base import ReplayDrafter
from rolltree.replay.records import Rollout
from rolltree.types import DraftBatch, Int32Array, Int64Array, TokenIds

if TYPE_CHECKING:
    from rolltree.store import RolloutStore


class RolltreeDrafter(ReplayDrafter):
    """`rolltree.TreeDrafter` as an engine drives it: siblings see each other's tokens once decoded."""

    budgeted = True

    def __init__(self, cache: CacheConfig, draft: DraftConfig, *, store: RolloutStore | None = None) -> None:
        self.cache = RolloutCache(cache, store=store)
        self._drafter = TreeDrafter(self.cache, draft)

    @property
    def cost(self) -> CostModel | None:
        """The budget's cost model."""
        return self._drafter.cost

    @cost.setter
    def cost(self, model: CostModel | None) -> None:
        self._drafter.cost = model

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        return self._drafter.open(prompt, key=key, seed=seed, coupled=coupled)

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""
        return self._drafter.draft(handles, limits)

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""
        self._drafter.advance(handles, tokens, offsets)

    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""
        self._drafter.close(handle, keep=keep)

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """See ReplayDrafter."""
        for rollout in rollouts:
            session = self.cache.open(rollout.prompt, key=rollout.prompt_id)
            for tokens, context in rollout.segments():
                self.cache.extend(session, tokens, context=context)
            self.cache.close(session)

    def take_in(self, handle: int, tokens: Int32Array) -> None:
        """See ReplayDrafter; counted like prompt text."""
        self.cache.extend(handle, tokens, context=True)

    def begin(self, version: int) -> None:
        """See ReplayDrafter."""
        self.cache.set_version(version)

    def memory(self) -> tuple[int, int]:
        """See ReplayDrafter."""
        stats = self.cache.stats()
        return stats.bytes, stats.tokens

    def moved(self) -> tuple[int, int]:
        """See ReplayDrafter."""
        stats = self.cache.stats()
        return stats.evicted_prompts, stats.rebuilt_prompts

    def sources(self) -> dict[str, tuple[int, int]]:
        """See ReplayDrafter."""
        stats = self._drafter.snapshot()
        return {name: (stats.drafted_by_source[name], stats.accepted_by_source[name]) for name in SOURCES}


class HistoryDrafter(RolltreeDrafter):
    """Reads the trees during a step and writes to them only after it (HistoSpec): no own text, no siblings."""

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        return self.cache.open(prompt, key=key, read_only=True, seed=seed, coupled=coupled)

    def end(self, rollouts: Sequence[Rollout]) -> None:
        """See ReplayDrafter."""
        self.remember(rollouts)


class CeilingDrafter(RolltreeDrafter):
    """The oracle: at each step the longest piece of the true continuation that follows any suffix in the tree."""

    budgeted = False

    def __init__(
        self, cache: CacheConfig, draft: DraftConfig, *, shared: bool, store: RolloutStore | None = None
    ) -> None:
        super().__init__(cache, draft, store=store)
        self._shared = shared
        self._truth: Int32Array = np.zeros((0, 1), np.int32)

    def reveal(self, truth: Int32Array) -> None:
        """See ReplayDrafter."""
        self._truth = truth

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter; `limits` are the same for all rows in a replay."""
        truth, find, shared = np.ascontiguousarray(self._truth[:, :-1]), self.cache.longest_continuation, self._shared
        known = (truth >= 0).sum(axis=1).tolist()
        found = [find(h, row[:n], shared=shared) for h, row, n in zip(handles.tolist(), truth, known, strict=True)]
        parents = np.broadcast_to(np.arange(-1, truth.shape[1] - 1, dtype=np.int32), truth.shape)
        return DraftBatch(
            tokens=truth, parents=parents, lengths=np.minimum(found, limits).astype(np.int32),
            survival=np.ones(truth.shape, np.float32), is_chain=True,
        )  # fmt: skip

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""
        self.cache.append(handles, tokens, offsets)

    def sources(self) -> dict[str, tuple[int, int]]:
        """See ReplayDrafter."""
        return {}
