"""The file: tables, version, connection settings.

Write-ahead logging: readers and the one writer of the moment do not block each other, and a killed process loses at
most the transaction it was in. `synchronous=NORMAL`: a power cut may also lose the latest transactions, never the file.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from rolltree.errors import InvalidInputError, StoreVersionError
from rolltree.store.faults import translated
from rolltree.store.location import look_at

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


def connect(path: Path, *, make: bool = True, patience: float = 0.0) -> sqlite3.Connection:
    """Open the store at `path`; with `make`, it is made when there is none.

    Opening waits `patience` seconds for another process; the connection then waits for nobody: a lock is an error.

    Raises:
        InvalidInputError: no place for a store, another file, or another program's database; nothing there to open.
        StoreVersionError: a newer rolltree wrote it.
        StoreCorruptedError: it is no database, or a damaged one.
        StoreError: it cannot be opened.

    """
    look_at(path)
    name = quote(os.fsencode(os.path.abspath(path)))
    with translated(path):
        database = sqlite3.connect(
            f"file:{name}?mode={'rwc' if make else 'rw'}", uri=True, timeout=patience, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip
        try:
            _prepare(database, path, make)
        except BaseException:
            database.close()
            raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, make: bool) -> None:
    database.execute("PRAGMA synchronous = NORMAL")
    if not _is_ours(database, path):
        if not make:
            raise InvalidInputError("store.path", str(path), "a rolltree store", "There is nothing in it.")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN IMMEDIATE")
        if not _is_ours(database, path):  # another process may have made it meanwhile
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    database.execute("PRAGMA busy_timeout = 0")


def _is_ours(database: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; False for an empty file.

    Tables are counted first: another process may make them, and the rest of the file, between any two of these.
    """
    tables, application, version = (
        int(database.execute(query).fetchone()[0])
        for query in ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
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
