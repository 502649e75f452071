"""Whose token ids a store holds: the size of the vocabulary and the name of the model, in its table `meta`.

The table is made when it is first asked for; files without it, and readers that do not know it, go on as they are.
"""

from __future__ import annotations

import sqlite3

from rolltree.errors import InvalidInputError

_TABLE = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID"


def known(database: sqlite3.Connection) -> tuple[int, str]:
    """Size of the vocabulary (0: not known) and name of the model; errors of SQLite."""
    if not database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]:
        return 0, ""
    values = dict(database.execute("SELECT name, value FROM meta").fetchall())
    return int(values.get("vocab", 0)), str(values.get("model", ""))


def check(path: object, before: tuple[int, str], vocab: int, model: str) -> str:
    """Return a sentence where a store of `before` is used for another model, else an empty text.

    Raises:
        InvalidInputError: the store's ids do not fit into `vocab`.

    """
    size, name = before
    if size > vocab:
        of = f"token ids of a model with {vocab} words ({model})"
        fix = "Name another file: a store belongs to one tokenizer."
        raise InvalidInputError("store", f"{path}, which holds ids of {size} words ({name})", of, fix)
    if name and model and name != model:
        return f"{path} was written for the model {name}, and this is {model}: right if both have the same tokenizer"
    return ""


def write(database: sqlite3.Connection, vocab: int, model: str) -> None:
    """Remember; errors of SQLite."""
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute(_TABLE)
        database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("vocab", vocab), ("model", model)])
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
