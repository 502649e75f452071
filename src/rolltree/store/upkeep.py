"""Looking after a store: what it holds, whether it is sound, and making it smaller. Pure SQL and checks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from rolltree.errors import StoreCorruptedError
from rolltree.store import schema
from rolltree.store.codec import unpack_tokens
from rolltree.store.connection import Connection
from rolltree.store.faults import StoreLockedError
from rolltree.store.location import existing
from rolltree.store.reader import StoreReader
from rolltree.store.schema import VERSION
from rolltree.tokens import as_integer, prompt_digest

MOST_FAULTS = 20
_SUMS = """
SELECT count(*), ifnull(sum(length), 0), min(version), max(version), count(reward), count(logprobs),
       ifnull(sum(length(tokens)), 0)
FROM rollout
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What a store holds."""

    schema: int
    prompts: int
    rollouts: int
    tokens: int
    """Of rollouts, prompts not counted."""
    oldest_version: int | None
    newest_version: int | None
    with_reward: int
    with_logprobs: int
    bytes: int
    """Of the file and its write-ahead log."""
    token_bytes: int
    """Of these, the compressed tokens of rollouts."""


def info(path: str | PathLike[str]) -> StoreInfo:
    """Count what the store holds.

    Raises:
        InvalidInputError, StoreError and its kinds: there is no store, or it cannot be read.

    """
    path = existing(path)
    with closing(Connection(path, make=False)) as database:
        rollouts, tokens, oldest, newest, rewards, logprobs, size = database.execute(_SUMS)[0]
        prompts = database.execute("SELECT count(*) FROM prompt")[0][0]
        return StoreInfo(
            schema=VERSION, prompts=prompts, rollouts=rollouts, tokens=tokens, oldest_version=oldest,
            newest_version=newest, with_reward=rewards, with_logprobs=logprobs, bytes=_size(path), token_bytes=size,
        )  # fmt: skip


def _size(path: Path) -> int:
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def verify(path: str | PathLike[str], progress: Callable[[int], None] = lambda rollouts: None) -> list[str]:
    """Read everything: pages, links, checksums of all blobs, digests of prompts. Returns the first faults, [] if sound.

    Raises:
        InvalidInputError, StoreVersionError, StoreError: it is not a store, or cannot be looked at.

    """
    path, faults = existing(path), list[str]()
    if not path.stat().st_size:
        return [f"{path} is empty (0 bytes): whatever it held is gone"]
    try:
        with closing(Connection(path, make=False)) as database:
            for fault in _faults(database, path, progress):
                faults.append(fault)
                if len(faults) == MOST_FAULTS:
                    break
    except StoreCorruptedError as error:
        faults.append(str(error))
    return faults


def _faults(database: Connection, path: Path, progress: Callable[[int], None]) -> Iterator[str]:
    yield from (str(row[0]) for row in database.execute("PRAGMA integrity_check") if row[0] != "ok")
    lost = "SELECT count(*) FROM rollout WHERE prompt NOT IN (SELECT id FROM prompt)"
    if orphans := database.execute(lost)[0][0]:
        yield f"{orphans} rollouts without a prompt"
    bad = set[int]()
    for (number,) in database.execute("SELECT id FROM prompt"):
        for row in database.execute("SELECT digest, length, tokens FROM prompt WHERE id = ?", (number,)):
            if fault := _prompt_fault(*row):
                bad.add(number)
                yield f"prompt {number}, and all its rollouts: {fault}"
    with closing(StoreReader(path)) as reader:
        for count, (id, prompt) in enumerate(database.execute("SELECT id, prompt FROM rollout ORDER BY id")):
            if prompt not in bad and (fault := reader.fault(id)):
                yield fault
            if count % 1000 == 0:
                progress(count)


def _prompt_fault(digest: bytes, length: int, blob: bytes) -> str:
    try:
        tokens = unpack_tokens(blob)
    except Exception as error:  # damaged, or no blob any more
        return str(error)
    return (
        ""
        if len(tokens) == length and prompt_digest(tokens) == digest
        else "its tokens are not those that were written"
    )


def compact(path: str | PathLike[str], *, window: int | None = None) -> tuple[StoreInfo, StoreInfo]:
    """Forget all but the latest `window` rollouts of each prompt (None: keep all) and give the space back to the disk.

    Returns what the store held before and holds now. Other processes may go on using the store; while the file is
    rewritten they wait.

    Raises:
        InvalidInputError: `window` is below 1.
        StoreError: it cannot be written; what was not to be forgotten is still there.

    """
    if window is not None:
        window = as_integer(window, "window", 1)
    path = existing(path)
    before = info(path)
    with closing(Connection(path, make=False)) as database:
        if window is not None:
            database.use(lambda open: _forget(open, window), schema.BUSY_SECONDS)
        database.execute("VACUUM", (), schema.BUSY_SECONDS)
        database.use(_cut_log, schema.BUSY_SECONDS)
    return before, info(path)


def _forget(database: sqlite3.Connection, window: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute(
            "DELETE FROM rollout WHERE id IN (SELECT id FROM ("
            " SELECT id, row_number() OVER (PARTITION BY prompt ORDER BY id DESC) AS place FROM rollout)"
            " WHERE place > ?)",
            (window,),
        )
        database.execute("DELETE FROM prompt WHERE id NOT IN (SELECT prompt FROM rollout)")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _cut_log(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        raise StoreLockedError("The store is being read by another process: the log is cut when that ends. Try later")
