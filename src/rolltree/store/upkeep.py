"""Looking after a store: what it holds, whether it is sound, and making it smaller. Pure SQL and checks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from rolltree.errors import InvalidInputError, StoreCorruptedError, StoreError
from rolltree.store.codec import unpack_tokens
from rolltree.store.naming import digest_of
from rolltree.store.reader import Reader
from rolltree.store.schema import VERSION, connect, translated

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


def existing(path: str | PathLike[str]) -> Path:
    """`path`, which must be there: looking at a store must not make one.

    Raises:
        InvalidInputError: there is no such file.

    """
    if not Path(path).is_file():
        raise InvalidInputError("store.path", str(path), "a file that exists", "Check the name.")
    return Path(path)


def info(path: str | PathLike[str]) -> StoreInfo:
    """Count what the store holds; StoreError and its kinds as `RolloutStore`."""
    path = existing(path)
    with closing(connect(path)) as database, translated(path):
        rollouts, tokens, oldest, newest, rewards, logprobs, size = database.execute(_SUMS).fetchone()
        prompts = database.execute("SELECT count(*) FROM prompt").fetchone()[0]
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
        InvalidInputError, StoreVersionError: it is not a store that can be looked at.

    """
    path, faults = existing(path), list[str]()
    try:
        with closing(connect(path)) as database, translated(path):
            for fault in _faults(database, path, progress):
                faults.append(fault)
                if len(faults) == MOST_FAULTS:
                    break
    except StoreCorruptedError as error:
        faults.append(str(error))
    return faults


def _faults(database: sqlite3.Connection, path: Path, progress: Callable[[int], None]) -> Iterator[str]:
    yield from (row[0] for row in database.execute("PRAGMA integrity_check") if row[0] != "ok")
    lost = "SELECT count(*) FROM rollout WHERE prompt NOT IN (SELECT id FROM prompt)"
    if orphans := database.execute(lost).fetchone()[0]:
        yield f"{orphans} rollouts without a prompt"
    for number, digest, length, blob in database.execute("SELECT id, digest, length, tokens FROM prompt"):
        yield from _prompt_fault(number, digest, length, blob)
    with closing(Reader(path)) as reader:
        ids = [row[0] for row in database.execute("SELECT id FROM rollout ORDER BY id")]
        for count, id in enumerate(ids):
            if fault := reader.fault(id):
                yield fault
            if count % 1000 == 0:
                progress(count)


def _prompt_fault(number: int, digest: bytes, length: int, blob: bytes) -> Iterator[str]:
    try:
        tokens = unpack_tokens(blob)
    except ValueError as error:
        yield f"prompt {number}: {error}"
        return
    if len(tokens) != length or digest_of(tokens) != digest:
        yield f"prompt {number}: its tokens are not those that were written"


def compact(path: str | PathLike[str], *, window: int | None = None) -> tuple[StoreInfo, StoreInfo]:
    """Forget all but the latest `window` rollouts of each prompt (None: keep all) and give the space back to the disk.

    Returns what the store held before and holds now. Other processes may go on using the store; while the file is
    rewritten they wait.

    Raises:
        InvalidInputError: `window` is below 1.

    """
    if window is not None and window < 1:
        raise InvalidInputError("window", window, "1 or more", "Delete the file to forget everything.")
    path = existing(path)
    before = info(path)
    with closing(connect(path)) as database, translated(path):
        if window is not None:
            _forget(database, window)
        database.execute("VACUUM")
        busy = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StoreError(f"{path} is being read by another process: the log is cut when that ends. Try again later")
    return before, info(path)


def _forget(database: sqlite3.Connection, window: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.execute(
        "DELETE FROM rollout WHERE id IN (SELECT id FROM ("
        " SELECT id, row_number() OVER (PARTITION BY prompt ORDER BY id DESC) AS place FROM rollout) WHERE place > ?)",
        (window,),
    )
    database.execute("DELETE FROM prompt WHERE id NOT IN (SELECT prompt FROM rollout)")
    database.execute("COMMIT")
