from __future__ import annotations

import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolltree import RolloutStore
from rolltree.errors import InvalidInputError, StoreCorruptedError, StoreError, StoreVersionError
from rolltree.store import StoredRollout, compact, info, verify
from rolltree.store import schema as schema_module
from rolltree.store.codec import pack_floats, pack_tokens, unpack_floats, unpack_tokens
from rolltree.store.traces import export_traces, import_traces

PROMPT = [3, 1, 2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.db"


def texts(rollouts: list[StoredRollout]) -> list[list[int]]:
    return [rollout.token_ids.tolist() for rollout in rollouts]


def fill(path: Path, prompts: int = 4, samples: int = 5, length: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(0)
    added = []
    with RolloutStore(path) as store:
        for version in range(samples):
            for prompt in range(prompts):
                added.append(rng.integers(0, 50_000, length).tolist())
                store.add([prompt, *PROMPT], added[-1], version=version, sample=0)
    return added


def test_what_goes_in_comes_out_in_order(path: Path) -> None:
    probs = [-0.25, -1e-7, float("-inf")]
    with RolloutStore(path) as store:
        store.add(PROMPT, [7, 8, 70_000], version=5, sample=2, logprobs=probs, reward=0.5)
        store.add(PROMPT, [9], key="chat", context=[(0, 1)])
        store.add([4], [2**31 - 1], version=6)
        first, second, third = store
    assert (first.prompt_token_ids.tolist(), first.token_ids.tolist()) == (PROMPT, [7, 8, 70_000])
    assert (first.version, first.sample, first.reward, first.key) == (5, 2, 0.5, None)
    np.testing.assert_array_equal(first.logprobs, np.array(probs, np.float32))
    assert (second.key, second.context, second.sample, second.reward, second.logprobs) == (
        "chat",
        ((0, 1),),
        *[None] * 3,
    )
    assert third.token_ids.tolist() == [2**31 - 1]
    assert first.token_ids.dtype == np.int32
    assert 0 < first.id < second.id < third.id


def test_prompts_and_keys_are_told_apart(path: Path) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [1])
        store.add(PROMPT, [2], key="a")
        store.add([9], [3], key="a")
        store.add(PROMPT, [4], key="")
        store.add([], [5])
        store.add(PROMPT, [6])
        assert texts(store.rollouts(PROMPT)) == [[1], [6]]
        assert texts(store.rollouts(PROMPT, last=1)) == [[6]]
        assert texts(store.rollouts(key="a")) == [[2], [3]]
        assert texts(store.rollouts(key="a", last=1)) == [[3]]
        assert texts(store.rollouts([9], key="a")) == [[3]]
        assert texts(store.rollouts(key="")) == [[4]]
        assert texts(store.rollouts([])) == [[5]]
        assert store.rollouts([8]) == store.rollouts(key="b") == []
        assert len(store) == 6
        with pytest.raises(InvalidInputError, match="a prompt or a key"):
            store.rollouts()


@given(
    st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 70_000), max_size=200),
    st.lists(st.integers(0, 70_000), max_size=50),
)
def test_tokens_survive_packing(tokens: list[int], prompt: list[int]) -> None:
    a, p = np.array(tokens, np.int32), np.array(prompt, np.int32)
    for dictionary in (None, p):
        np.testing.assert_array_equal(unpack_tokens(pack_tokens(a, dictionary), dictionary), a)


@given(st.lists(st.floats(width=32), max_size=100))
def test_floats_survive_packing_bit_by_bit(values: list[float]) -> None:
    array = np.array(values, np.float32)
    np.testing.assert_array_equal(unpack_floats(pack_floats(array)).view(np.int32), array.view(np.int32))


def test_real_text_takes_less_than_a_third_of_int32() -> None:
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 49152, rng.integers(2, 9)) for _ in range(60)]
    text = np.concatenate([words[i] for i in rng.integers(0, len(words), 200)]).astype(np.int32)
    assert len(pack_tokens(text)) < 4 * len(text) / 3


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:5] + bytes([b[5] ^ 1]) + b[6:], lambda b: b"\7" + b[1:]]
)
def test_a_damaged_blob_is_found(damage) -> None:
    blob = pack_tokens(np.arange(300, dtype=np.int32))
    with pytest.raises(ValueError, match="blob"):
        unpack_tokens(damage(blob))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"token_ids": [-1]}, r"token_ids\[0\]"),
        ({"token_ids": [1.5]}, "token_ids.dtype"),
        ({"logprobs": [0.0]}, "logprobs"),
        ({"context": [(1, 3)]}, "context"),
        ({"context": [(2, 1)]}, "context"),
        ({"version": 2**63}, "version"),
    ],
)
def test_mistakes_are_named_and_nothing_is_added(path: Path, arguments, name: str) -> None:
    with RolloutStore(path) as store:
        with pytest.raises(InvalidInputError, match=name):
            store.add(**({"prompt_token_ids": PROMPT, "token_ids": [1, 2]} | arguments))
        assert len(store) == 0


def test_a_store_goes_on_where_it_was_closed(path: Path) -> None:
    store = RolloutStore(path)
    store.add(PROMPT, [1])
    store.close()
    store.close()
    with pytest.raises(InvalidInputError, match="closed"):
        store.add(PROMPT, [2])
    with RolloutStore(path) as again:
        again.add(PROMPT, [3])
        assert texts(list(again)) == [[1], [3]]


def test_a_store_travels_as_its_path(path: Path) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [1])
        store.flush()
        with pickle.loads(pickle.dumps(store)) as other:
            other.add(PROMPT, [2])
        assert texts(store.rollouts(PROMPT)) == [[1], [2]]


def test_the_caller_may_change_its_arrays_afterwards(path: Path) -> None:
    tokens = np.array([1, 2], np.int32)
    with RolloutStore(path) as store:
        store.add(PROMPT, tokens)
        tokens[:] = 9
        assert texts(list(store)) == [[1, 2]]


def test_iteration_passes_page_borders(path: Path) -> None:
    with RolloutStore(path) as store:
        for i in range(1200):
            store.add([i % 7], [i])
        assert texts(list(store)) == [[i] for i in range(1200)]


def test_a_newer_schema_is_refused_with_the_fix(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {schema_module.VERSION + 1}")
    with pytest.raises(StoreVersionError, match="upgrade rolltree"):
        RolloutStore(path)
    with pytest.raises(StoreVersionError):
        verify(path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("not a database " * 100)
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreCorruptedError, match="move the file away"):
        RolloutStore(text)
    with pytest.raises(InvalidInputError, match="another program's"):
        RolloutStore(other)
    with pytest.raises(InvalidInputError, match="Make the folder first"):
        RolloutStore(tmp_path / "missing" / "x.db")
    with pytest.raises(InvalidInputError, match="a file that exists"):
        info(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


def overwrite(path: Path, start: int, stop: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (stop - start))


def test_damaged_pages_are_a_typed_error(path: Path) -> None:
    fill(path, samples=40)
    compact(path)  # all of it out of the log
    assert verify(path) == []
    overwrite(path, 4096, path.stat().st_size)
    assert verify(path)
    with pytest.raises(StoreCorruptedError, match="recover"):
        list(RolloutStore(path))


def test_a_changed_row_is_found_and_named(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as database:
        blob = bytearray(database.execute("SELECT tokens FROM rollout WHERE id = 7").fetchone()[0])
        blob[20] ^= 4
        database.execute("UPDATE rollout SET tokens = ? WHERE id = 7", (bytes(blob),))
        database.execute("UPDATE rollout SET length = 3 WHERE id = 9")
        database.execute("UPDATE prompt SET digest = x'00' WHERE id = 2")
        database.commit()
    faults = verify(path)
    assert [word in fault for word, fault in zip(["prompt 2", "rollout 7", "rollout 9"], faults, strict=True)] == [
        True
    ] * 3
    with RolloutStore(path) as store, pytest.raises(StoreCorruptedError, match="rollout 7"):
        list(store)


def test_compact_keeps_the_latest_of_each_prompt(path: Path) -> None:
    added = fill(path, prompts=3, samples=6, length=400)
    before, after = compact(path, window=2)
    assert (before.rollouts, after.rollouts, after.prompts) == (18, 6, 3)
    assert after.bytes < before.bytes
    assert (after.oldest_version, after.newest_version, after.tokens) == (4, 5, 6 * 400)
    with RolloutStore(path) as store:
        assert texts(list(store)) == added[-6:]
        ids = [rollout.id for rollout in store]
        store.add(PROMPT, [1])
        assert list(store)[-1].id > max(ids)  # ids are never used twice
    assert verify(path) == []
    with pytest.raises(InvalidInputError, match="window"):
        compact(path, window=0)


def test_traces_come_back_as_they_went(path: Path, tmp_path: Path) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [5, 6], version=3, reward=1.0, logprobs=[-0.5, -0.25])
        store.add(PROMPT, [7], version=3)
        store.add([9], [8], version=4, sample=3)
        for name in ("t.jsonl", "t.jsonl.gz"):
            assert export_traces(store, tmp_path / name) == 3
    with RolloutStore(tmp_path / "again.db") as again:
        assert import_traces(again, tmp_path / "t.jsonl.gz") == 3
        rollouts = list(again)
    assert [(r.version, r.sample, r.reward) for r in rollouts] == [(3, None, 1.0), (3, None, None), (4, 3, None)]
    assert texts(rollouts) == [[5, 6], [7], [8]]
    np.testing.assert_array_equal(rollouts[0].logprobs, np.array([-0.5, -0.25], np.float32))


def test_a_bad_trace_line_is_named(path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"prompt_token_ids": [1], "token_ids": [2]}\n\n{"prompt_token_ids": [1]}\n')
    with RolloutStore(path) as store:
        with pytest.raises(InvalidInputError, match="line 3"):
            import_traces(store, trace)
        assert texts(list(store)) == [[2]]


def test_a_locked_file_loses_nothing_and_flush_says_why(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(schema_module, "BUSY_SECONDS", 0.05)
    store = RolloutStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.add(PROMPT, [1])
        with pytest.raises(StoreError, match="locked"):
            store.flush()
        store.add(PROMPT, [2])
        other.execute("ROLLBACK")
    store.flush()
    assert texts(list(store)) == [[1], [2]]
    assert store.dropped == 0
    store.close()


def test_what_cannot_wait_forever_is_dropped_and_counted(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(schema_module, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr("rolltree.store.writer.MOST_WAITING", 4)
    store = RolloutStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.add(PROMPT, [0])
        with pytest.raises(StoreError):
            store.flush()
        for i in range(1, 1000):
            store.add(PROMPT, [i])
        assert store.dropped + len(store) == 1000  # what waits is read from memory
        other.execute("ROLLBACK")
    with pytest.raises(StoreError, match=f"{store.dropped} rollouts were dropped"):
        store.flush()
    store.flush()  # said once
    assert store.dropped + len(store) == 1000
    assert store.dropped > 0
    assert texts(list(store))[-4:] == [[996], [997], [998], [999]]
    store.close()
