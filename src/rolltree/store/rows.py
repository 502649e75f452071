"""A rollout as a row of the file, and back, with a checksum over all that the row says.

The checksum lies behind the compressed tokens, where readers that do not know it do not look. It covers the row's own
id, its prompt and key, every number and every blob, so that whatever changed in the file is found when it is read.
Rows of before there was one are read without.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolltree.errors import StoreCorruptedError
from rolltree.store.codec import pack_floats, pack_tokens, unpack_and_rest, unpack_floats, unpack_tokens
from rolltree.tokens import prompt_digest
from rolltree.traces.rollout import Span, StoredRollout

CHECK = 8  # bytes
COLUMNS = (
    "SELECT r.id, p.key, p.tokens, r.version, r.sample, r.reward, r.length, r.tokens, r.logprobs, r.context"
    " FROM rollout r JOIN prompt p ON p.id = r.prompt "
)
_PROMPT = "INSERT OR IGNORE INTO prompt (key, digest, length, tokens) VALUES (?, ?, ?, ?)"
_NAME = "SELECT id FROM prompt WHERE digest = ? AND ifnull(key, x'') = ifnull(?, x'')"
_ROLLOUT = (
    "INSERT INTO rollout (id, prompt, version, sample, reward, length, tokens, logprobs, context)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class Packed:
    """What is written of one rollout."""

    prompt: tuple[str | None, bytes, int, bytes]
    """key, digest, length, tokens."""
    numbers: tuple[int, int | None, float | None, int]
    """version, sample, reward, length."""
    tokens: bytes
    logprobs: bytes | None
    context: str | None

    @classmethod
    def of(cls, rollout: StoredRollout) -> Packed:
        """Compress."""
        prompt, tokens = rollout.prompt_token_ids, rollout.token_ids
        return cls(
            (rollout.key, prompt_digest(prompt), len(prompt), pack_tokens(prompt)),
            (rollout.version, rollout.sample, rollout.reward, len(tokens)),
            pack_tokens(tokens, prompt),
            None if rollout.logprobs is None else pack_floats(rollout.logprobs),
            ",".join(f"{a}-{b}" for a, b in rollout.context) or None,
        )

    def write(self, database: sqlite3.Connection, id: int) -> int:
        """Insert into the tables, inside a transaction; return the prompt's id. Errors of SQLite."""
        key, digest, _, _ = self.prompt
        database.execute(_PROMPT, self.prompt)
        number = int(database.execute(_NAME, (digest, key)).fetchone()[0])
        tokens = self.tokens + _check((id, key, digest, *self.numbers, self.context), self.tokens, self.logprobs)
        database.execute(_ROLLOUT, (id, number, *self.numbers, tokens, self.logprobs, self.context))
        return number


def next_id(database: sqlite3.Connection) -> int:
    """The id of the next row, inside a transaction: beyond all that were ever used."""
    used = "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'rollout'), 0)"
    return 1 + int(max(database.execute(f"{used}, ifnull(max(id), 0) FROM rollout").fetchone()))


def rollout_of(row: tuple[Any, ...], path: Path) -> StoredRollout:
    """The rollout in a row of `COLUMNS`; raise StoreCorruptedError for a damaged one."""
    try:
        return _rollout(*row)
    except Exception as error:  # whatever a changed byte leads to: another type, another length, no UTF-8
        fix = "`rolltree store verify` lists what is damaged."
        raise StoreCorruptedError(f"{path}: rollout {row[0]}: {error}. {fix}") from error


def _rollout(
    id: int, key: str | None, prompt_blob: bytes, version: int, sample: int | None,
    reward: float | None, length: int, blob: bytes, logprobs: bytes | None, context: str | None,
) -> StoredRollout:  # fmt: skip
    prompt = unpack_tokens(prompt_blob)
    tokens, check = unpack_and_rest(blob, prompt)
    probs = None if logprobs is None else unpack_floats(logprobs)
    if len(tokens) != length or (probs is not None and len(probs) != length):
        raise ValueError(f"{len(tokens)} tokens where {length} were written")
    stream = blob[: len(blob) - len(check)]
    named = (id, key, prompt_digest(prompt), version, sample, reward, length, context)
    if len(check) not in (0, CHECK):
        raise ValueError("damaged blob: it does not end where it should")
    if check and check != _check(named, stream, logprobs):
        raise ValueError("it is not what was written: the checksum differs")
    return StoredRollout(
        prompt_token_ids=prompt, token_ids=tokens, key=key, version=version, sample=sample, reward=reward,
        logprobs=probs, context=_spans(context), id=id,
    )  # fmt: skip


def _check(fields: tuple[object, ...], tokens: bytes, logprobs: bytes | None) -> bytes:
    """8 bytes over the row; ascii(), because it says each type and is the same in every Python."""
    sizes = (len(tokens), None if logprobs is None else len(logprobs))
    whole = hashlib.blake2b(ascii((*fields, *sizes)).encode(), digest_size=CHECK)
    whole.update(tokens)
    whole.update(logprobs or b"")
    return whole.digest()


def _spans(text: str | None) -> tuple[Span, ...]:
    pairs = [] if text is None else [part.partition("-") for part in text.split(",")]
    return tuple((int(a), int(b)) for a, _, b in pairs)
