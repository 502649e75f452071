"""What a store forgets by itself, in the thread that writes: beyond a prompt's window, and what is oldest.

Rows go in short transactions, so that others who write wait for none of it. The pages they leave are used again: the
file stops growing, and shrinks by `compact` alone. What is forgotten was asked to be; without limits, nothing is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SLICE = 16  # of the oldest rollouts, in one transaction
LOW = 0.95  # of the limit: how far a file that is too large is emptied


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What a store keeps."""

    window: int = 0
    """Latest rollouts of each prompt; 0: all. Applied to the prompts that are written."""
    bytes: int = 0
    """Of the file without free pages and log; 0: any."""

    def apply(self, database: sqlite3.Connection, prompts: Iterable[int]) -> int:
        """Forget what is too much, after rollouts of these prompts were written; return how many. Errors of SQLite."""
        gone = 0
        if self.window:
            gone += _transaction(database, lambda: sum(_beyond(database, prompt, self.window) for prompt in prompts))
        if self.bytes and used(database) > self.bytes:
            while used(database) > LOW * self.bytes and (
                forgotten := _transaction(database, lambda: _oldest(database))
            ):
                gone += forgotten
        return gone


def used(database: sqlite3.Connection) -> int:
    """Bytes of the file without free pages."""
    pages, free, size = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _transaction(database: sqlite3.Connection, work: Callable[[], int]) -> int:
    database.execute("BEGIN IMMEDIATE")
    try:
        gone = work()
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return gone


def _beyond(database: sqlite3.Connection, prompt: int, window: int) -> int:
    query = (
        "DELETE FROM rollout WHERE id IN (SELECT id FROM rollout WHERE prompt = ? ORDER BY id DESC LIMIT -1 OFFSET ?)"
    )
    return database.execute(query, (prompt, window)).rowcount


def _oldest(database: sqlite3.Connection) -> int:
    rows = database.execute("SELECT id, prompt FROM rollout ORDER BY id LIMIT ?", (SLICE,)).fetchall()
    if rows:
        database.execute("DELETE FROM rollout WHERE id <= ?", (rows[-1][0],))
        empty = "DELETE FROM prompt WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM rollout WHERE prompt = ?1)"
        database.executemany(empty, [(prompt,) for prompt in {prompt for _, prompt in rows}])
    return len(rows)
