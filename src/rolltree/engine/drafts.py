"""The engine's side of the drafter protocol: what a drafter may break here is a step without drafts, never a
rollout.

Checks every draft (vocabulary, parents, limits) and keeps the longest valid part of each row. An exception is
logged once and counted; the rows go on undrafted. Invariant: a session that stays open has been told every token of its
request. One that missed some, because the drafter failed, is closed unkept, and its request has none from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rolltree.engine.running import NO_HANDLE, Job, Rows
from rolltree.engine.stats import EngineStats
from rolltree.errors import SessionClosedError
from rolltree.types import DraftBatch, Drafter, Int32Array, Int64Array

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckedDrafts:
    """Checked drafts of the B running rows."""

    tokens: Int32Array
    """Shape [B, K]."""
    parents: Int64Array | None
    """Shape [B, K]: parent node, -1 for the committed token; None when every row is a chain."""
    lengths: Int64Array
    """Shape [B]."""

    @classmethod
    def none(cls, rows: int) -> CheckedDrafts:
        """No drafts."""
        return cls(np.zeros((rows, 0), np.int32), None, np.zeros(rows, np.int64))


class DraftSource:
    """A drafter, or none, that cannot fail."""

    def __init__(
        self, drafter: Drafter | None, *, vocab: int, max_draft: int, coupled: bool, stats: EngineStats
    ) -> None:
        self.drafter = drafter if max_draft else None
        self.vocab, self.max_draft, self.coupled, self.stats = vocab, max_draft, coupled, stats
        self._logged = False
        self._open: set[int] = set()

    def open(self, job: Job) -> int:
        """Handle for a new request, NO_HANDLE without a drafter."""
        drafter = self.drafter
        if drafter is None:
            return NO_HANDLE
        ahead = {"run_ahead": True} if job.on_finish else {}  # asked of no drafter that need not know it
        handle = self._guarded(
            lambda: drafter.open(job.prompt, key=job.key, seed=job.seed, coupled=self.coupled, **ahead)
        )
        if handle is None:
            return NO_HANDLE
        self._open.add(int(handle))
        return int(handle)

    def draft(self, rows: Rows) -> CheckedDrafts:
        """Drafts of all running rows; a row never drafts past its end."""
        n, drafter = rows.count, self.drafter
        limits = np.minimum(rows.end[:n] - rows.length[:n] - 1, self.max_draft).astype(np.int32)
        active = np.flatnonzero((rows.handle[:n] != NO_HANDLE) & (limits > 0))
        if drafter is None or not len(active):
            return CheckedDrafts.none(n)
        handles, allowed = rows.handle[active], limits[active]
        checked = self._guarded(lambda: self._checked(drafter.draft(handles, allowed), allowed))
        if checked is None or not checked.lengths.any():
            return CheckedDrafts.none(n)
        return checked if len(active) == n else _spread(checked, active, n)

    def advance(self, rows: Rows, tokens: Int32Array, counts: Int64Array) -> None:
        """Commit `tokens` [E], of which row `b` emitted `counts[b]`; where that fails, these rows' sessions end."""
        drafter, n = self.drafter, rows.count
        if drafter is None:
            return
        mine = (rows.handle[:n] != NO_HANDLE) & (counts > 0)
        if not mine.any():
            return
        kept = tokens if mine.all() else tokens[np.repeat(mine, counts)]
        offsets = np.concatenate(([0], np.cumsum(counts[mine]))).astype(np.int32)
        handles, packed = rows.handle[:n][mine], np.ascontiguousarray(kept, np.int32)
        if not self._told(lambda: drafter.advance(handles, packed, offsets)):
            rows.handle[:n][mine] = NO_HANDLE
            for handle in handles.tolist():
                self._forget(drafter, handle)

    def close(self, handle: int, *, keep: bool) -> None:
        """End a request's handle; one that cannot be kept is forgotten."""
        drafter = self.drafter
        if drafter is None or handle == NO_HANDLE:
            return
        if not self._told(lambda: drafter.close(handle, keep=keep)):
            self._forget(drafter, handle)
        self._open.discard(handle)

    def abandon(self) -> None:
        """Forget every open session: what they were told may not be what was emitted."""
        for handle in list(self._open):
            assert self.drafter is not None
            self._forget(self.drafter, handle)

    def _forget(self, drafter: Drafter, handle: int) -> None:
        try:
            drafter.close(handle, keep=False)
        except SessionClosedError:
            pass  # the failed call got that far
        except Exception:
            self._count_error()
        self._open.discard(handle)

    def _checked(self, batch: DraftBatch, limits: Int32Array) -> CheckedDrafts:
        width = batch.tokens.shape[1]
        assert batch.tokens.shape == batch.parents.shape == (len(limits), width)
        column = np.arange(width)
        claimed = np.clip(batch.lengths, 0, width).astype(np.int64)
        good = (batch.tokens >= 0) & (batch.tokens < self.vocab) & (column < np.minimum(claimed, limits)[:, None])
        if not batch.is_chain:
            good &= (batch.parents >= -1) & (batch.parents < column)
        # Parents come before children, so the part before the first bad node is a valid tree.
        lengths = np.logical_and.accumulate(good, axis=1).sum(axis=1)
        self.stats.invalid_drafts += int((claimed - lengths).sum())
        width = int(lengths.max(initial=0))
        parents = None if batch.is_chain else batch.parents[:, :width].astype(np.int64)
        return CheckedDrafts(batch.tokens[:, :width], parents, lengths)

    def _guarded(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception:  # a plugin's bug must not end the rollouts of others
            self._count_error()
            return None

    def _told(self, call: Callable[[], None]) -> bool:
        """Whether the call went well."""

        def whole() -> bool:
            call()
            return True

        return self._guarded(whole) is not None

    def _count_error(self) -> None:
        """Called while an exception is handled."""
        self.stats.drafter_errors += 1
        if not self._logged:
            _log.exception("The drafter failed; this step goes on without drafts. Logged once, counted always.")
            self._logged = True


def _spread(drafts: CheckedDrafts, active: Int64Array, rows: int) -> CheckedDrafts:
    """Drafts of the rows `active` as drafts of all rows."""
    width = drafts.tokens.shape[1]
    tokens, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int64)
    tokens[active], lengths[active] = drafts.tokens, drafts.lengths
    if drafts.parents is None:
        return CheckedDrafts(tokens, None, lengths)
    parents = np.full((rows, width), -1, np.int64)
    parents[active] = drafts.parents
    return CheckedDrafts(tokens, parents, lengths)
