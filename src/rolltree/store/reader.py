"""Reads a store: in short statements of its own connection, so that no reader ever holds up a writer."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from rolltree.errors import StoreCorruptedError
from rolltree.store.codec import unpack_floats, unpack_tokens
from rolltree.store.record import Span, StoredRollout
from rolltree.store.schema import connect, translated

ALL = 2**62
PAGE = 512  # rollouts of one statement
_COLUMNS = (
    "SELECT r.id, p.key, p.tokens, r.version, r.sample, r.reward, r.length, r.tokens, r.logprobs, r.context"
    " FROM rollout r JOIN prompt p ON p.id = r.prompt "
)
_NAMED = "SELECT id FROM prompt WHERE digest = ?1 AND ifnull(key, x'') = ifnull(?2, x'')"
_KEYED = "SELECT id FROM prompt WHERE key = ?2 AND ?1 IS NULL"
_LATEST = """
SELECT id FROM (
  SELECT id, sum(length) OVER (ORDER BY id DESC) AS tokens FROM (
    SELECT id, length, row_number() OVER (PARTITION BY prompt ORDER BY id DESC) AS place FROM rollout)
  WHERE place <= ?)
WHERE tokens <= ? ORDER BY id
"""


class Reader:
    """One connection behind a lock; thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = connect(path)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def count(self) -> int:
        """Rollouts in the file."""
        return int(self._rows("SELECT count(*) FROM rollout")[0][0])

    def newest_version(self) -> int:
        """Largest policy version; 0 for an empty store."""
        return int(self._rows("SELECT ifnull(max(version), 0) FROM rollout")[0][0])

    def of_prompt(self, digest: bytes | None, key: str | None, last: int) -> list[StoredRollout]:
        """The latest rollouts of a prompt and key (None: any prompt of the key), oldest first."""
        prompts = _KEYED if digest is None else _NAMED
        query = f"{_COLUMNS} WHERE r.prompt IN ({prompts}) ORDER BY r.id DESC LIMIT ?3"
        return [rollout_of(row, self.path) for row in reversed(self._rows(query, (digest, key, last)))]

    def in_order(self) -> Iterator[StoredRollout]:
        """All, by id, a page at a time."""
        after = 0
        while page := self._rows(_COLUMNS + "WHERE r.id > ? ORDER BY r.id LIMIT ?", (after, PAGE)):
            for row in page:
                yield rollout_of(row, self.path)
            after = page[-1][0]

    def latest(self, window: int, max_tokens: int) -> Iterator[StoredRollout]:
        """The latest `window` of each prompt, the oldest left out beyond `max_tokens`; by id."""
        ids = [row[0] for row in self._rows(_LATEST, (window, max_tokens))]
        for start in range(0, len(ids), PAGE):
            part = ids[start : start + PAGE]
            marks = ",".join("?" * len(part))
            for row in self._rows(_COLUMNS + f"WHERE r.id IN ({marks}) ORDER BY r.id", part):
                yield rollout_of(row, self.path)

    def fault(self, id: int) -> str:
        """What is wrong with a rollout; empty when it can be read, or is gone."""
        try:
            for row in self._rows(_COLUMNS + "WHERE r.id = ?", (id,)):
                rollout_of(row, self.path)
        except StoreCorruptedError as error:
            return str(error)
        return ""

    def _rows(self, query: str, values: Iterable[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock, translated(self.path):
            return self._database.execute(query, tuple(values)).fetchall()


def rollout_of(row: tuple, path: Path) -> StoredRollout:  # type: ignore[type-arg]
    """The rollout in a row of `_COLUMNS`; raise StoreCorruptedError for a damaged one."""
    id, key, prompt_blob, version, sample, reward, length, blob, logprobs, context = row
    try:
        prompt = unpack_tokens(prompt_blob)
        tokens = unpack_tokens(blob, prompt)
        probs = None if logprobs is None else unpack_floats(logprobs)
        if len(tokens) != length or (probs is not None and len(probs) != length):
            raise ValueError(f"{len(tokens)} tokens where {length} were written")
    except ValueError as error:
        fix = "`rolltree store verify` lists what is damaged."
        raise StoreCorruptedError(f"{path}: rollout {id}: {error}. {fix}") from error
    return StoredRollout(
        prompt_token_ids=prompt, token_ids=tokens, key=key, version=version, sample=sample, reward=reward,
        logprobs=probs, context=_spans(context), id=id,
    )  # fmt: skip


def _spans(text: str | None) -> tuple[Span, ...]:
    pairs = [] if text is None else [part.partition("-") for part in text.split(",")]
    return tuple((int(a), int(b)) for a, _, b in pairs)
