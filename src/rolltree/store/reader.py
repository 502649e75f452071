"""Reads a store: in short statements of its own connection, so that no reader ever holds up a writer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from rolltree.errors import StoreCorruptedError
from rolltree.store import schema
from rolltree.store.connection import Connection
from rolltree.store.rows import COLUMNS, rollout_of
from rolltree.tokens import prompt_digest
from rolltree.traces.rollout import StoredRollout

ALL = 2**62
PAGE = 512  # rollouts of one statement
_NAMED = "SELECT id FROM prompt WHERE digest = ?1 AND ifnull(key, x'') = ifnull(?2, x'')"
_KEYED = "SELECT id FROM prompt WHERE key = ?2 AND ?1 IS NULL"
Damaged = Callable[[StoreCorruptedError], None]


def refuse(error: StoreCorruptedError) -> None:
    """What is damaged is an error."""
    raise error


class StoreReader:
    """One connection; thread-safe. All raise StoreError for a file that cannot be read.

    A damaged rollout goes to `damaged`, which raises it or leaves it out.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; errors of `Connection`."""
        self.path = path
        self._database = Connection(path, make=False)

    def close(self) -> None:
        """Let go of the file; harmless when repeated, and in a forked child."""
        self._database.close()

    def count(self) -> tuple[int, int]:
        """Rollouts in the file, and the newest id."""
        count, newest = self._rows("SELECT count(*), ifnull(max(id), 0) FROM rollout")[0]
        return count, newest

    def newest_version(self) -> int:
        """Largest policy version of a sound rollout; 0 for an empty store."""
        for (id,) in self._rows("SELECT id FROM rollout ORDER BY version DESC LIMIT 1000"):
            for rollout in self.of_ids([id], lambda error: None):
                return rollout.version
        return 0

    def of_prompt(
        self, digest: bytes | None, key: str | None, last: int, *, damaged: Damaged = refuse, wait: bool = True
    ) -> list[StoredRollout]:
        """The latest rollouts of a prompt and key (None: any prompt of the key), oldest first.

        Without `wait`, a locked file is an error at once.
        """
        prompts = _KEYED if digest is None else _NAMED
        query = f"{COLUMNS} WHERE r.prompt IN ({prompts}) ORDER BY r.id DESC LIMIT ?3"
        found = list(self._rollouts(self._rows(query, (digest, key, last), wait)[::-1], damaged))
        right = [one for one in found if one.key == key and digest in (None, prompt_digest(one.prompt_token_ids))]
        if len(right) < len(found):
            damaged(StoreCorruptedError(f"{self.path}: an index leads to rollouts of other prompts"))
        return right

    def after(self, id: int) -> Iterator[StoredRollout]:
        """A page of what comes after row `id`, by id."""
        rows = self._rows(COLUMNS + "WHERE r.id > ? ORDER BY r.id LIMIT ?", (id, PAGE))
        self._check_order([id, *(row[0] for row in rows)])
        yield from self._rollouts(rows, refuse)

    def names(self, newest: int) -> Iterator[tuple[int, int, str | None, bytes]]:
        """(id, tokens, key, digest of the prompt) of all up to `newest`, the latest first, a page at a time."""
        query = (
            "SELECT r.id, r.length, p.key, p.digest FROM rollout r JOIN prompt p ON p.id = r.prompt"
            " WHERE r.id < ? ORDER BY r.id DESC LIMIT ?"
        )
        before = newest + 1
        while page := self._rows(query, (before, 8 * PAGE)):
            self._check_order([row[0] for row in reversed(page)] + [before])
            yield from page
            before = page[-1][0]

    def of_ids(self, ids: list[int], damaged: Damaged) -> Iterator[StoredRollout]:
        """Those of some rows, in the order given, a page at a time; rows that are gone are left out."""
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            marks = ",".join("?" * len(page))
            yield from self._rollouts(self._rows(COLUMNS + f"WHERE r.id IN ({marks}) ORDER BY r.id", page), damaged)

    def fault(self, id: int) -> str:
        """What is wrong with a rollout; empty when it can be read, or is gone."""
        try:
            list(self.of_ids([id], refuse))
        except StoreCorruptedError as error:
            return str(error)
        return ""

    def _check_order(self, ids: list[int]) -> None:
        """Each page goes on from the last: in a damaged file, ids out of order would make that endless."""
        if any(a >= b for a, b in pairwise(ids)):
            raise StoreCorruptedError(f"{self.path}: ids are out of order. `rolltree store verify` says more")

    def _rollouts(self, rows: list[Any], damaged: Damaged) -> Iterator[StoredRollout]:
        for row in rows:
            try:
                rollout = rollout_of(row, self.path)
            except StoreCorruptedError as error:
                damaged(error)
            else:
                yield rollout

    def _rows(self, query: str, values: Any = (), wait: bool = True) -> list[Any]:
        return self._database.execute(query, values, schema.BUSY_SECONDS if wait else 0.0)
