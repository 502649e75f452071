"""The background thread that commits rollouts, off the caller's path, many in a transaction.

A rollout is safe once its transaction is committed: at most `DELAY` after `put` while the disk keeps up, and always
after `flush`. A failing disk never fails the caller: rollouts wait in memory, where they can be read; the oldest are
dropped beyond `MOST_WAITING` or `MOST_BYTES`, and `flush` says why. A rollout that cannot be written, whatever the
state of the disk, is dropped alone. What is dropped is counted, logged by name, and raised by the next `flush`.

Invariant: rollouts get into the file in the order of `put`, whatever fails in between.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rolltree.errors import InvalidInputError, StoreError
from rolltree.store import schema
from rolltree.store.connection import Connection
from rolltree.store.pending import Pending, PendingRollout
from rolltree.store.retention import Retention
from rolltree.store.rows import Packed, next_id
from rolltree.tokens import prompt_digest
from rolltree.traces.rollout import StoredRollout

DELAY = 0.2  # seconds that a rollout waits for others to share a transaction with
SLOWEST = 30.0  # seconds between two attempts at most, while they fail
BATCH = 256  # rollouts that are committed without waiting for more
BATCH_BYTES = 64 * 2**20  # that are written at once: while they are, they are in memory twice
MOST_WAITING = 65536
MOST_BYTES = 2**30
EVERYTHING = Retention()
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Writer:
    """Commits to one file; thread-safe, for the process that made it."""

    def __init__(self, path: Path, *, make: bool = True, keep: Retention = EVERYTHING) -> None:
        """Open the file, or make it; errors of `schema.connect`, and StoreError where no thread can start."""
        self.path, self.keep = path, keep
        self.dropped = self.commits = self.forgotten = 0
        self._database = Connection(path, make=make)
        self._pending = Pending()
        self._lost, self._why = 0, ""  # dropped, and not said by `flush` yet
        self._overflown = 0  # dropped because too many waited
        self._error: StoreError | None = None
        self._failures = 0  # attempts that failed, ever
        self._streak = 0  # attempts that failed since the last commit
        self._hurry = self._closed = False
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="rolltree-store", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._database.close()
            raise StoreError(f"{path}: {error}. Raise the limit of threads (ulimit -u)") from error

    def put(self, rollout: StoredRollout) -> None:
        """Take a checked rollout to commit; microseconds.

        Raises:
            InvalidInputError: the store is closed, or this is a fork of the process that opened it.

        """
        self.check()
        digest = prompt_digest(rollout.prompt_token_ids)
        with self._changed:
            self.check()
            self._pending.add(rollout, digest)
            if len(self._pending) == 1 or self._pending.at_rest == BATCH:
                self._changed.notify_all()
            while self._is_full() and (entry := self._pending.drop()) is not None:
                self._overflow(entry)

    def use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `work` does with this connection; it waits for others. Errors of `Connection.use`."""
        return self._database.use(work, schema.BUSY_SECONDS)

    @property
    def behind(self) -> int:
        """Rollouts that are not in the file yet."""
        return len(self._pending)

    def waiting(self) -> list[PendingRollout]:
        """What may not be in the file yet, oldest first; look at `PendingRollout.id` after reading the file."""
        self.check()
        with self._changed:
            return self._pending.entries()

    def waiting_of(self, digest: bytes | None, key: str | None) -> list[PendingRollout]:
        """The same of one prompt and key (None: any prompt of the key)."""
        self.check()
        with self._changed:
            return self._pending.of(digest, key)

    def flush(self) -> None:
        """Return when all that was put is committed.

        Raises:
            InvalidInputError: the store is closed, or this is a fork of the process that opened it.
            StoreError: something is not safe: it stays in memory; or was dropped since the last flush.

        """
        self.check()
        with self._changed:
            self.check()
            waits = self._wait(self._pending.put, self._failures)
            lost, self._lost = self._lost, 0
            if waits and not lost:
                raise self._error or StoreError(f"{self.path}: the store's thread ended. Make a new RolloutStore")
            if lost:
                more = f" {len(self._pending)} more wait in memory: {self._error}" if waits else ""
                raise StoreError(f"{self.path}: {lost} rollouts were dropped and are lost: {self._why}.{more}")

    def settle(self) -> None:
        """Wait until what was put is committed, or an attempt failed; at once while attempts fail. Says nothing."""
        self.check()
        with self._changed:
            if not self._streak:
                self._wait(self._pending.put, self._failures)

    def close(self) -> None:
        """Commit what waits and end the thread; harmless when repeated, and in a forked child."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # which a garbage collection may run in
            self._thread.join()

    def check(self) -> None:
        """Raise InvalidInputError when this cannot be used: closed, or in a forked child. Takes no lock."""
        if self._closed:
            raise InvalidInputError("store", str(self.path), "open", "It was closed: make a new RolloutStore.")
        self._database.check()

    def _wait(self, target: int, failures: int) -> bool:
        """Hurry until the first `target` are settled or one more attempt failed; whether some are still waiting."""
        while self._pending.older_than(target) and self._failures == failures and self._thread.is_alive():
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait(1.0)
        return self._pending.older_than(target)

    def _run(self) -> None:
        while batch := self._next():
            try:
                lost = self._commit(batch)
            except Exception as error:
                self._fail(error if isinstance(error, StoreError) else StoreError(f"{self.path}: {error!r}"))
            else:
                self._settle(batch, lost)
                self._forget({entry.prompt for entry in batch if entry.id})
        self._database.close()

    def _next(self) -> list[PendingRollout]:
        """Wait for rollouts, a little for more; empty when the store is closed and nothing is left to try."""
        with self._changed:
            while not len(self._pending) and not self._closed:
                self._changed.wait()
            if len(self._pending) < BATCH or self._streak:
                pause = min(DELAY * 2.0 ** min(self._streak, 16), SLOWEST)
                self._changed.wait_for(self._in_haste, pause)
            self._hurry = False  # who still waits in `flush` says so again
            return self._pending.first(16 * BATCH, BATCH_BYTES)

    def _in_haste(self) -> bool:
        return self._hurry or self._closed or (not self._streak and len(self._pending) >= BATCH)

    def _commit(self, batch: Sequence[PendingRollout]) -> list[tuple[PendingRollout, Exception]]:
        """Write a batch; returns which rollouts are at fault themselves. StoreError where nothing could be written."""
        lost, good = list[tuple[PendingRollout, Exception]](), list[PendingRollout]()
        for entry in batch:
            try:
                entry.packed = entry.packed or Packed.of(entry.rollout)
                good.append(entry)
            except Exception as error:
                lost.append((entry, error))
        return lost + self._database.use(lambda database: _write(database, good), schema.BUSY_SECONDS)

    def _settle(self, batch: Sequence[PendingRollout], lost: Sequence[tuple[PendingRollout, Exception]]) -> None:
        with self._changed:
            for entry in batch:
                self._pending.remove(entry)
            self._pending.landed()
            for entry, error in lost:
                self._lose(1, entry, error)
            if self._streak:
                _log.warning("%s: rollouts are committed again", self.path)
            self._error, self._streak = None, 0
            self.commits += 1
            self._changed.notify_all()

    def _forget(self, prompts: set[int]) -> None:
        """Keep to the limits; a file that is locked is tried again after the next commit."""
        if self.keep == EVERYTHING:
            return
        try:
            self.forgotten += self._database.use(lambda database: self.keep.apply(database, prompts))
        except Exception as error:
            _log.warning("%s is larger than it should be until the next commit: %s", self.path, error)

    def _fail(self, error: StoreError) -> None:
        """Keep what waits for the next attempt, or lose it when there will be none."""
        with self._changed:
            self._pending.landed()
            self._failures += 1
            self._streak += 1
            if self._error is None:
                _log.warning("Rollouts wait in memory: %s", error)
            self._error = error
            if self._closed:
                left = self._pending.entries()
                for entry in left:
                    self._pending.remove(entry)
                if left:
                    self._lose(len(left), left[0], error)
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return self._pending.at_rest > MOST_WAITING or self._pending.bytes_at_rest > MOST_BYTES

    def _overflow(self, entry: PendingRollout) -> None:
        """Count what left because too many wait; said at the first, the second, the fourth..."""
        self._overflown += 1
        said = self._overflown & (self._overflown - 1) == 0
        self._lose(1, entry, self._error or f"more than {MOST_WAITING} rollouts or {MOST_BYTES} bytes wait", said)

    def _lose(self, count: int, first: PendingRollout, why: object, said: bool = True) -> None:
        self.dropped += count
        self._lost += count
        self._why = str(why)
        if said:
            whole = f"{self.dropped} so far"
            _log.error("%d rollouts lost to %s, %s; the first: %s. %s", count, self.path, whole, first.named(), why)


def _write(database: sqlite3.Connection, batch: Sequence[PendingRollout]) -> list[tuple[PendingRollout, Exception]]:
    """One transaction, without the rows at fault, which are returned."""
    lost = list[tuple[PendingRollout, Exception]]()
    database.execute("BEGIN IMMEDIATE")
    try:
        id = next_id(database)
        for entry in batch:
            database.execute("SAVEPOINT one")
            try:
                assert entry.packed is not None
                entry.prompt = entry.packed.write(database, id)
                entry.id = id
                id += 1
            except Exception as error:
                if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                    raise  # the disk's fault
                database.execute("ROLLBACK TO one")
                entry.id = 0
                lost.append((entry, error))
            database.execute("RELEASE one")
        database.execute("COMMIT")
    except BaseException:
        for entry in batch:  # before the lock is let go: from then on, another process may use these ids
            entry.id = 0
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return lost
