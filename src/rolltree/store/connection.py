"""One connection to a store, for one thread at a time, never carried over a fork.

SQLite's locks do not survive a fork: a child that merely opens the same file anew would believe in locks that its
parent holds, and what it commits can be lost. So all connections of a process are closed before `os.fork` and opened
again in the parent when next used; in the child they are refused. The child may open stores of its own.

Waiting for another process happens here, outside of SQLite and with the connection free for others.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rolltree.errors import InvalidInputError, StoreError
from rolltree.forking import STORES, at_fork
from rolltree.store import schema
from rolltree.store.faults import StoreLockedError, translated
from rolltree.store.location import Identity, existing, identity, look_at, users
from rolltree.store.schema import connect

T = TypeVar("T")
FORK_SECONDS = 5.0  # how long a fork waits for a statement to end
_POLL = 0.02  # seconds between two looks at a lock
_numbers = itertools.count()
_fork = threading.local()  # what the forking thread holds
_opening = threading.RLock()  # no connection begins while a process forks
_unsafe: set[Identity] = set()  # files (device, inode) that were in use at the fork which made this process


class Connection:
    """A file's connection; thread-safe."""

    def __init__(self, path: Path, *, make: bool = True) -> None:
        """Open the file; errors of `schema.connect`, and InvalidInputError for one that was in use at a fork."""
        self.path, self._file = path, Path(os.path.abspath(path))  # the folder of the process may change
        self._lock = threading.RLock()  # a signal handler may read during a read
        self._database: sqlite3.Connection | None = None
        self._process, self._closed, self._number = os.getpid(), False, next(_numbers)
        self._users = 0
        self._identity = identity(self._file)
        _check_safe(path)
        with _opening, self._lock:
            self._begin(make)

    def _begin(self, make: bool) -> None:
        """Look at the file before SQLite has it: from then on, nothing else may open it in this process."""
        (look_at if make else existing)(self.path)
        users.add(self)
        try:
            self._database = connect(self.path, make=make, patience=schema.BUSY_SECONDS)
        except BaseException:
            self._closed = True
            raise
        self._identity = identity(self._file)

    def use(self, work: Callable[[sqlite3.Connection], T], patience: float = 0.0) -> T:
        """Return what `work` does with the connection; tried again for `patience` seconds while the file is locked.

        Raises:
            InvalidInputError: closed, or in a forked child.
            StoreError: as `translated`, and what `work` raises.

        """
        until = time.monotonic() + patience
        while True:
            try:
                return self._once(work)
            except StoreLockedError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_POLL)

    def execute(self, query: str, values: Iterable[object] = (), patience: float = 0.0) -> list[Any]:
        """All rows of one statement; errors as `use`."""
        return self.use(lambda database: database.execute(query, tuple(values)).fetchall(), patience)

    def close(self) -> None:
        """Let go of the file; harmless when repeated, and in a forked child."""
        if os.getpid() == self._process:
            with self._lock:
                self._closed = True
                self.park()

    def check(self) -> None:
        """Raise InvalidInputError when this cannot be used: closed, or in a forked child. Takes no lock."""
        if self._closed:
            raise InvalidInputError("store", str(self.path), "open", "It was closed: make a new RolloutStore.")
        if os.getpid() != self._process:
            fix = "Make a RolloutStore in each process."
            raise InvalidInputError("store", str(self.path), "used in the process that opened it", fix)

    def has_open(self, file: Identity) -> bool:
        """Whether this process has the file open here, or may have."""
        return file == self._identity and not self._closed and os.getpid() == self._process

    def park(self) -> None:
        """Close until the next use; the caller holds the lock."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.check()
        with self._lock, translated(self.path):
            self.check()
            if identity(self._file) != self._identity:  # SQLite would go on writing to a file without a name
                fix = "Put it back, or make a new RolloutStore."
                raise StoreError(f"{self.path} was moved, deleted or replaced while in use. {fix}")
            if self._database is None:
                self._database = connect(self._file, make=False)
            self._users += 1
            try:
                return work(self._database)
            finally:
                self._users -= 1

    def hold(self) -> bool:
        """Before a fork: wait for the statement that runs, then close. False for what cannot be had in time."""
        if not self._lock.acquire(timeout=FORK_SECONDS):
            return False
        if self._users == 0:  # otherwise a signal handler forks during a statement of its own thread
            with suppress(sqlite3.Error):
                self.park()
                return True
        self._lock.release()
        return False

    def release(self) -> None:
        """After a fork, in the parent."""
        self._lock.release()

    def abandon(self) -> None:
        """In the child, for what `hold` could not close: never touch it again, not even to close it."""
        database, self._database = self._database, None
        if database is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(database))
        _unsafe.add(self._identity)


def _before_fork() -> None:
    _fork.opening = _opening.acquire(timeout=FORK_SECONDS)
    mine = [c for c in list(users) if isinstance(c, Connection) and c._process == os.getpid()]
    tried = [(c, c.hold()) for c in sorted(mine, key=lambda c: c._number)]
    _fork.held = [c for c, held in tried if held]
    _fork.missed = [c for c, held in tried if not held]


def _after_fork_in_parent() -> None:
    for connection in _fork.held:
        connection.release()
    if _fork.opening:
        _opening.release()
    _fork.__dict__.clear()


def _after_fork_in_child() -> None:
    global _opening
    _opening = threading.RLock()
    for connection in _fork.missed:
        connection.abandon()
    _fork.__dict__.clear()


def _check_safe(path: Path) -> None:
    if _unsafe and identity(path) in _unsafe - {(0, 0)}:
        fix = "Fork before the store is opened, or start the process by spawn."
        raise InvalidInputError("store.path", str(path), "a file that was not being written at the fork", fix)


at_fork(STORES, _before_fork, _after_fork_in_parent, _after_fork_in_child)
