"""Stores of a replay: a new one for each case, in a folder that stays or in one that goes away with the case.

Opens no store that exists, because what it knows would count as history.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rolltree.errors import InvalidInputError
from rolltree.store import RolloutStore, StoreInfo, info

TEMPORARY = "temporary"


@dataclass(slots=True)
class CaseStore:
    """The store of one case, if it has one."""

    store: RolloutStore | None = None
    info: StoreInfo | None = None
    """What it holds, once the case is over."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where stores are made: a folder, or None for a temporary one."""

    folder: Path | None

    @classmethod
    def at(cls, where: str) -> Stores:
        """Return the stores of `--store`.

        Raises:
            InvalidInputError: a file, or a folder that holds something.

        """
        if where == TEMPORARY:
            return cls(None)
        folder = Path(where)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInputError("--store", where, f"a new or empty folder, or {TEMPORARY}", "A case begins empty.")
        return cls(folder)

    @contextmanager
    def of(self, case: str) -> Iterator[CaseStore]:
        """Open a new store for a case of that name, and close it.

        Raises:
            StoreError: the file cannot be written.

        """
        with ExitStack() as stack:
            folder = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rolltree-replay-")))
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / (re.sub(r"[^A-Za-z0-9.=_]+", "-", case) + ".db")
            with RolloutStore(path) as store:
                kept = CaseStore(store)
                yield kept
                store.flush()
            kept.info = info(path)
