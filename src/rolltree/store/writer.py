"""The background thread that commits rollouts, off the caller's path, many in a transaction.

A rollout is safe once its transaction is committed: at most `DELAY` after `put` while the disk keeps up, and always
after `flush`. A failing disk never fails the caller: rollouts wait in memory, the oldest are dropped and counted beyond
`MOST_WAITING`, and `flush` says why. Invariant: rollouts get into the file in the order of `put`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rolltree.errors import InvalidInputError, StoreError
from rolltree.store.codec import pack_floats, pack_tokens
from rolltree.store.naming import digest_of
from rolltree.store.record import StoredRollout
from rolltree.store.schema import connect, translated

DELAY = 0.2  # seconds that a rollout waits for others to share a transaction with
BATCH = 256  # rollouts that are not worth waiting for more
MOST_WAITING = 65536
_log = logging.getLogger(__name__)

_PROMPT = "INSERT OR IGNORE INTO prompt (key, digest, length, tokens) VALUES (?, ?, ?, ?)"
_NAME = "SELECT id FROM prompt WHERE digest = ? AND ifnull(key, x'') = ifnull(?, x'')"
_ROLLOUT = (
    "INSERT INTO rollout (prompt, version, sample, reward, length, tokens, logprobs, context)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class Writer:
    """Commits to one file; thread-safe, for the process that made it."""

    def __init__(self, path: Path) -> None:
        """Open, and make, the file; errors of `schema.connect`."""
        self.path, self.dropped = path, 0
        self._database = connect(path)
        self._waiting: deque[StoredRollout] = deque()
        self._put = self._done = 0  # rollouts handed over, and committed or dropped
        self._error: StoreError | None = None
        self._hurry = self._closed = False
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="rolltree-store", daemon=True)
        self._thread.start()

    def put(self, rollout: StoredRollout) -> None:
        """Take a rollout to commit; microseconds.

        Raises:
            InvalidInputError: the store is closed, or this is a fork of the process that opened it.

        """
        with self._changed:
            self._check_usable()
            self._waiting.append(rollout)
            self._put += 1
            if len(self._waiting) == 1 or len(self._waiting) >= BATCH:
                self._changed.notify_all()
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self._done += 1
                self.dropped += 1

    @property
    def waiting(self) -> bool:
        """Whether some rollout is not committed yet."""
        return self._done < self._put

    def flush(self) -> None:
        """Return when all that was put is committed; raise StoreError where that failed (it stays in memory)."""
        with self._changed:
            self._check_usable()
            target, self._error = self._put, None
            while self._done < target and self._error is None and self._thread.is_alive():
                self._hurry = True
                self._changed.notify_all()
                self._changed.wait(1.0)
            if self._error is not None:
                raise self._error
            assert self._done >= target, "the store's thread died"

    def close(self) -> None:
        """Commit what waits and end the thread; harmless when repeated, and in a forked child."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._database.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidInputError("store", str(self.path), "open", "It was closed: make a new RolloutStore.")
        if os.getpid() != self._process:
            fix = "Make a RolloutStore in each process."
            raise InvalidInputError("store", str(self.path), "used in the process that opened it", fix)

    def _run(self) -> None:
        while batch := self._next():
            try:
                with translated(self.path):
                    _commit(self._database, batch)
            except StoreError as error:
                self._keep(batch, error)
            except Exception as error:  # a rollout that cannot be written must not hold up the others for good
                self._lose(len(batch), error)
            else:
                self._settle(len(batch))

    def _next(self) -> list[StoredRollout]:
        """Wait for rollouts, a little for more; empty when the store is closed and nothing is left to try."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._hurry and not self._closed and (len(self._waiting) < BATCH or self._error):
                self._changed.wait_for(lambda: self._hurry or self._closed, DELAY)
            self._hurry = False  # who still waits in `flush` says so again
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), 16 * BATCH))]

    def _settle(self, count: int) -> None:
        with self._changed:
            self._done += count
            self._error = None
            self._changed.notify_all()

    def _keep(self, batch: list[StoredRollout], error: StoreError) -> None:
        """Put a failed batch back for the next attempt, or lose it when there will be none."""
        if self._closed:
            self._lose(len(batch), error)
            return
        with self._changed:
            if self._error is None:
                _log.warning("Rollouts wait in memory: %s", error)
            self._error = error
            self._waiting.extendleft(reversed(batch))
            self._changed.notify_all()

    def _lose(self, count: int, error: Exception) -> None:
        _log.error("%d rollouts are lost to the store %s: %s", count, self.path, error)
        self.dropped += count
        self._settle(count)


def _commit(database: sqlite3.Connection, batch: Sequence[StoredRollout]) -> None:
    """One transaction; compressed before the lock is taken."""
    rows = [(_prompt_row(rollout), _rollout_row(rollout)) for rollout in batch]
    database.execute("BEGIN IMMEDIATE")
    try:
        for prompt, rollout in rows:
            database.execute(_PROMPT, prompt)
            number = database.execute(_NAME, (prompt[1], prompt[0])).fetchone()[0]
            database.execute(_ROLLOUT, (number, *rollout))
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _prompt_row(rollout: StoredRollout) -> tuple[object, ...]:
    prompt = rollout.prompt_token_ids
    return rollout.key, digest_of(prompt), len(prompt), pack_tokens(prompt)


def _rollout_row(rollout: StoredRollout) -> tuple[object, ...]:
    context = ",".join(f"{a}-{b}" for a, b in rollout.context) or None
    logprobs = None if rollout.logprobs is None else pack_floats(rollout.logprobs)
    tokens = pack_tokens(rollout.token_ids, rollout.prompt_token_ids)
    return rollout.version, rollout.sample, rollout.reward, len(rollout.token_ids), tokens, logprobs, context
