"""Changed bytes in a store's file: every answer is a typed error or something that was really added."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from rolltree import RolloutCache, RolloutStore
from rolltree.errors import RolltreeError, StoreCorruptedError
from rolltree.store import StoredRollout, compact, info, verify

SEED = 11
CASES = int(os.environ.get("STORE_FUZZ_CASES", "60"))  # of each part; `make fuzz` runs more


def said(rollout: StoredRollout) -> tuple[object, ...]:
    """All that a rollout says, comparable."""
    probs = None if rollout.logprobs is None else rollout.logprobs.tobytes()
    return (
        rollout.id, rollout.prompt_token_ids.tobytes(), rollout.token_ids.tobytes(), rollout.key, rollout.version,
        rollout.sample, rollout.reward, probs, rollout.context,
    )  # fmt: skip


class Recorded:
    """Stands where a cache does, and keeps what it is given."""

    def __init__(self) -> None:
        self.version, self.rollouts = 0, list[StoredRollout]()

    def set_version(self, version: int) -> None:
        self.version = version

    def restore(self, rollout: StoredRollout) -> None:
        self.rollouts.append(rollout)


def fill(path: Path) -> None:
    rng = random.Random(SEED)
    with RolloutStore(path) as store:
        for version, prompt in itertools.product(range(9), range(4)):
            tokens = [rng.randrange(50_000 if prompt else 500_000) for _ in range(rng.randrange(1, 90))]
            store.add(
                [prompt] * 5, tokens, key=[None, "chat", "naïve key", ""][prompt], version=version,
                sample=None if version % 3 else version, reward=[None, 0.5, -1.0, float("inf")][version % 4],
                logprobs=[-rng.random() for _ in tokens] if version % 2 else None,
                context=[(0, 1)] if version % 3 == 1 else (),
            )  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "rollouts.db"
    fill(path)
    compact(path)  # all of it out of the log
    return path


def answers(path: Path, truth: set[tuple[object, ...]]) -> Iterator[int]:
    """Ask everything; yields how many rollouts each question got. What is no typed error fails the test."""
    with RolloutStore(path) as store:
        for question in (
            lambda: list(store),
            *(lambda p=p: store.rollouts([p] * 5, key=[None, "chat", "naïve key", ""][p]) for p in range(4)),
            lambda: store.rollouts(key="chat", last=3),
            lambda: loaded(store),
        ):
            with suppress(RolltreeError):
                found = question()
                assert {said(rollout) for rollout in found} <= truth
                yield len(found)
        with suppress(RolltreeError):
            RolloutCache(store=store).open([2] * 5)
        with suppress(RolltreeError):
            len(store)


def loaded(store: RolloutStore) -> list[StoredRollout]:
    into = Recorded()
    store.load_into(into, window=64)
    assert into.version in range(9)
    return into.rollouts


def read(path: Path) -> set[tuple[object, ...]]:
    with RolloutStore(path) as store:
        return {said(rollout) for rollout in store}


def damage(data: bytearray, rng: random.Random) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        start = rng.randrange(len(data) // 512) * 512
        data[start : start + 512] = bytes(512)
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


@pytest.mark.parametrize("part", range(4))
def test_flipped_bytes_give_an_error_or_what_was_written(sound: Path, tmp_path: Path, part: int) -> None:
    rng, truth, path = random.Random(SEED + part), read(sound), tmp_path / "r.db"
    noticed = 0
    for _ in range(CASES):
        data = bytearray(sound.read_bytes())
        damage(data, rng)
        path.write_bytes(data)
        with suppress(RolltreeError):
            info(path)
        faults = ["cannot be looked at"]
        with suppress(RolltreeError):
            faults = verify(path)
        counts = []
        with suppress(RolltreeError):
            counts = list(answers(path, truth))
        noticed += bool(faults)
        if not faults:
            assert counts == [36, 9, 9, 9, 9, 3, 36], "something is missing, and verify calls it sound"
        for beside in tmp_path.iterdir():
            beside.unlink()
    assert noticed > CASES / 3


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_can_be_written_to_or_says_why_not(sound: Path, tmp_path: Path, seed: int) -> None:
    rng, truth, path = random.Random(SEED * 7 + seed), {one[1:] for one in read(sound)}, tmp_path / "r.db"
    for number in range(12):
        data = bytearray(sound.read_bytes())
        damage(data, rng)
        path.write_bytes(data)
        with suppress(RolltreeError), RolloutStore(path) as store:
            store.add([77], [number])
            new = next(said(one)[1:] for one in store.rollouts([77]))
            with suppress(RolltreeError):
                store.flush()
            with suppress(RolltreeError):
                assert {said(one)[1:] for one in store} <= truth | {new}
        with suppress(RolltreeError):
            compact(path, window=5)
        for beside in tmp_path.iterdir():
            beside.unlink()


def test_a_damaged_log_costs_its_own_rollouts_at_most(tmp_path: Path) -> None:
    path, base, copy = (tmp_path / name for name in ("r.db", "base.db", "copy.db"))
    rng = random.Random(SEED)
    fill(path)
    with RolloutStore(path) as store:
        truth = {said(one) for one in store}
        for number in range(40):
            store.add([5], [number])
        truth |= {said(one) for one in store}
        log = path.with_name("r.db-wal").read_bytes()
        subprocess.run(
            ["cp", path, base], check=True
        )  # opened and closed here, the file would lose this process's locks
    for _ in range(25):
        shutil.copyfile(base, copy)
        data = bytearray(log)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        copy.with_name("copy.db-wal").write_bytes(data)
        counts = []
        with suppress(RolltreeError):
            counts = list(answers(copy, truth))
        assert not counts or counts[0] >= 36


@pytest.mark.parametrize(
    "change",
    [
        "version = 2000000000", "version = -1", "reward = 0.25", "reward = NULL", "sample = 7", "context = NULL",
        "context = 'x'", "prompt = 2", "logprobs = NULL", "version = 'text'", "version = x'00'", "id = 999",
        "length = 'one'", "tokens = 'text'",
    ],
)  # fmt: skip
def test_a_change_of_any_field_is_found(tmp_path: Path, change: str) -> None:
    path = tmp_path / "r.db"
    fill(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute(f"UPDATE rollout SET {change} WHERE id = 5")
        database.execute("UPDATE sqlite_sequence SET seq = 2000")
        database.commit()
    assert len(verify(path)) == 1
    with RolloutStore(path) as store, pytest.raises(StoreCorruptedError, match="rollout"):
        list(store)
    with RolloutStore(path) as store:
        into = Recorded()
        assert store.load_into(into) == 35  # the culprit alone is left out
        assert into.version == 8


def test_a_changed_key_is_found(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    fill(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE prompt SET key = 'chap' WHERE key = 'chat'")
        database.commit()
    with RolloutStore(path) as store:
        with pytest.raises(StoreCorruptedError):
            store.rollouts(key="chap")
        assert store.load_into(Recorded()) == 27


def test_rows_without_a_checksum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    fill(path)
    with closing(sqlite3.connect(path)) as database:  # as they were written before there was one
        database.execute("UPDATE rollout SET tokens = substr(tokens, 1, length(tokens) - 8)")
        database.commit()
    assert verify(path) == []
    with RolloutStore(path) as store:
        assert len(list(store)) == 36
