"""The file: tables, version, connection settings, and what SQLite's errors mean to the user.

Write-ahead logging: readers and the one writer of the moment do not block each other, and a killed process loses at
most the transaction it was in. `synchronous=NORMAL`: a power cut may also lose the latest transactions, never the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rolltree.errors import InvalidInputError, StoreCorruptedError, StoreError, StoreVersionError

VERSION = 1
APPLICATION = 0x524F4C54  # "ROLT": tells our file from any other database
BUSY_SECONDS = 30.0  # how long a writer waits for another process

_TABLES = """
CREATE TABLE prompt (
  id INTEGER PRIMARY KEY, key TEXT, digest BLOB NOT NULL, length INTEGER NOT NULL, tokens BLOB NOT NULL);
CREATE UNIQUE INDEX prompt_name ON prompt (digest, ifnull(key, x''));
CREATE INDEX prompt_key ON prompt (key) WHERE key IS NOT NULL;
CREATE TABLE rollout (
  id INTEGER PRIMARY KEY AUTOINCREMENT, prompt INTEGER NOT NULL REFERENCES prompt, version INTEGER NOT NULL,
  sample INTEGER, reward REAL, length INTEGER NOT NULL, tokens BLOB NOT NULL, logprobs BLOB, context BLOB);
CREATE INDEX rollout_prompt ON rollout (prompt);
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the store at `path`, which is made when there is no file.

    Raises:
        InvalidInputError: the folder does not exist, or the file is another program's database.
        StoreVersionError: a newer rolltree wrote it.
        StoreCorruptedError: it is no database, or a damaged one.
        StoreError: it cannot be opened.

    """
    if not path.parent.is_dir():
        raise InvalidInputError("store.path", str(path), "a file in a folder that exists", "Make the folder first.")
    with translated(path):
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database, path)
        except BaseException:
            database.close()
            raise
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    database.execute("PRAGMA synchronous = NORMAL")
    if not _is_ours(database, path):
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN IMMEDIATE")
        if not _is_ours(database, path):  # another process may have made it meanwhile
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")


def _is_ours(database: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; False for an empty file."""
    application, version, tables = (
        int(database.execute(query).fetchone()[0])
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if application == 0 and tables == 0:
        return False
    if application != APPLICATION:
        raise InvalidInputError("store.path", str(path), "a rolltree store", "It is another program's database.")
    if version > VERSION:
        raise StoreVersionError(
            f"{path} has store schema {version}, this rolltree knows up to {VERSION}:"
            " upgrade rolltree, or name another file"
        )
    return True


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the store's, with the fix."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, disk full, read-only, I/O
        raise StoreError(f"{path}: {error}. {_fix(str(error))}") from error
    except sqlite3.DatabaseError as error:
        raise StoreCorruptedError(
            f"{path} is damaged ({error}). Save what can be read with `sqlite3 {path} .recover | sqlite3 NEW`,"
            " or move the file away: rollouts start from an empty store"
        ) from error


def _fix(reason: str) -> str:
    if "locked" in reason:
        return f"Another process has held the lock for {BUSY_SECONDS:g} s: end it, or wait."
    if "full" in reason:
        return "Free some space, or run `rolltree store compact`."
    return "Check that the file and its folder can be written, and that they lie on a local disk."
