"""What an error of SQLite means to the user: a system that says no, a damaged file, or a mistake in the call."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rolltree.errors import InvalidInputError, StoreCorruptedError, StoreError

_SYSTEM = (  # SQLite's own texts for what the machine refuses; any other failed statement of ours means a changed file
    "locked", "full", "readonly", "disk I/O error", "unable to open", "locking protocol", "permission", "authorization",
    "large file support", "interrupted", "schema has changed",
)  # fmt: skip


class StoreLockedError(StoreError):
    """Another process holds the file's lock."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the store's, with the fix.

    Raises:
        StoreLockedError, StoreError: the system refused: locked, full, read-only, I/O.
        StoreCorruptedError: the file is damaged.
        InvalidInputError: SQLite cannot take what it was given.

    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if not any(text in str(error) for text in _SYSTEM):
            raise _damaged(path, error) from error
        kind = StoreLockedError if "locked" in str(error) else StoreError
        raise kind(f"{path}: {error}. {_fix(str(error))}") from error
    except (
        sqlite3.ProgrammingError, sqlite3.IntegrityError, sqlite3.DataError, sqlite3.NotSupportedError,
        sqlite3.InterfaceError, OverflowError, UnicodeError,
    ) as error:  # fmt: skip
        raise InvalidInputError("store.value", str(error), f"what {path} can hold") from error
    except sqlite3.DatabaseError as error:  # itself, or InternalError: malformed, not a database
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"{path} is damaged ({error}). Save what can be read with `sqlite3 {path} .recover | sqlite3 NEW`,"
        " or move the file away: rollouts start from an empty store"
    )


def _fix(reason: str) -> str:
    if "locked" in reason:
        return "Another process holds the lock: end it, or wait."
    if "full" in reason:
        return "Free some space, or run `rolltree store compact`."
    return "Check that the file and its folder can be written, and that they lie on a local disk."
