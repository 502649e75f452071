"""Sends every finished rollout to a store, with its log-probabilities.

Where the drafter's cache commits to the same store already, only the log-probabilities are added to what it commits.
Without a store it does nothing. A store that fails is gone without: counted, and said once.
"""

from __future__ import annotations

from rolltree.drafting import TreeDrafter
from rolltree.engine.running import NO_HANDLE, Rows
from rolltree.engine.stats import EngineStats
from rolltree.errors import InvalidInputError
from rolltree.runlog import SideChannel
from rolltree.store import RolloutStore
from rolltree.tokens import as_version
from rolltree.types import Drafter


class Recorder:
    """The engine's way to a store."""

    def __init__(self, store: RolloutStore | None, drafter: Drafter | None, stats: EngineStats) -> None:
        """Raise InvalidInputError when the drafter's cache commits to another store."""
        self.store = store
        self._version = 0
        self._cache = drafter.cache if isinstance(drafter, TreeDrafter) else None
        committed = None if self._cache is None else self._cache.store
        if store is not None and committed is not None and committed is not store:
            fix = "Hand the same RolloutStore to the engine and to the cache."
            raise InvalidInputError("engine.store", str(store.path), f"the cache's, {committed.path}", fix)
        self._by_cache = store is not None and committed is store
        self._stats = stats
        self._guard = SideChannel("the engine's store")

    @property
    def version(self) -> int:
        """Version of the policy that generates now: the cache's, where there is one; setting it announces it there."""
        return self._version if self._cache is None else self._cache.version

    @version.setter
    def version(self, version: int) -> None:
        if self._cache is None:
            self._version = as_version(version)
        else:
            self._cache.set_version(version)

    def finish(self, rows: Rows, row: int) -> None:
        """Record the rollout in `row`, before its session closes."""
        self._stats.store_errors += 1
        with self._guard:
            self._record(rows, row)
            self._stats.store_errors -= 1

    def _record(self, rows: Rows, row: int) -> None:
        job = rows.jobs[row]
        if self.store is None or job is None:
            return
        generated = slice(int(rows.prompt[row]), int(rows.length[row]))
        logprobs, handle = rows.logprobs[row, generated].copy(), int(rows.handle[row])
        if self._by_cache and self._cache is not None and handle != NO_HANDLE:
            self._cache.annotate(handle, logprobs=logprobs)
            return
        self.store.add(job.prompt, rows.tokens[row, generated], key=job.key, version=self.version, logprobs=logprobs)
