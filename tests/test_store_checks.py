"""What a store takes and what it refuses: values, keys, paths, files of another kind."""

from __future__ import annotations

import enum
import gzip
import json
import os
import pickle
import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree import RolloutCache, RolloutStore
from rolltree.errors import InvalidInputError, RolltreeError, StoreCorruptedError, StoreError
from rolltree.store import StoredRollout, compact, info, verify
from rolltree.tokens import as_integer, as_key, as_tokens, as_version

PROMPT = [3, 1, 2]


class Name(str, enum.Enum):
    GSM = "gsm8k"

    def __str__(self) -> str:
        return "something else"


class Odd:
    """An object that answers nothing well."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __index__ = __float__ = __array__ = __iter__ = __str__ = __repr__


BAD_KEYS = [
    17,
    np.int64(17),
    1.5,
    True,
    b"key",
    ("gsm8k", 17),
    ["a"],
    {"a": 1},
    "\ud83d",
    "a\udfffb",
    Odd(),
    "x" * 2**21,
]
BAD_WHOLE = [
    None,
    float("nan"),
    1.5,
    2**63,
    -(2**63) - 1,
    10**5000,
    True,
    np.bool_(1),
    "3",
    b"3",
    [3],
    Odd(),
    1j,
    np.inf,
]
GOOD_WHOLE = [0, -1, 2**63 - 1, -(2**63), np.int8(3), np.uint64(7), np.array(5), 3.0, np.float32(4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.db"


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: type(key).__name__)
def test_a_key_that_is_no_text_is_refused_where_it_comes_in_and_costs_nobody(path: Path, key) -> None:
    with RolloutStore(path) as store:
        cache = RolloutCache(store=store)
        for i in range(5):
            store.add(PROMPT, [i], key="good")
        made_by_hand = StoredRollout(
            prompt_token_ids=np.array(PROMPT, np.int32), token_ids=np.array([1], np.int32), key=key
        )
        for call in (
            lambda: store.add(PROMPT, [9], key=key), lambda: store.put(made_by_hand),
            lambda: store.rollouts(key=key), lambda: store.rollouts(PROMPT, key=key),
            lambda: cache.open(PROMPT, key=key), lambda: cache.add(PROMPT, [1], key=key),
            lambda: RolloutCache().open(PROMPT, key=key), lambda: cache.rollouts(PROMPT, key=key),
        ):  # fmt: skip
            with pytest.raises(InvalidInputError, match=r"^key = "):
                call()
        assert cache.stats().sessions == 0
        store.flush()
        assert (len(store), store.dropped) == (5, 0)
        assert {one.key for one in store} == {"good"}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (np.str_("a"), "a"),
        (Name.GSM, "gsm8k"),
        ("nul\0inside", "nul\0inside"),
        ("", ""),
        ("😀" * 9, "😀" * 9),
        ("'\"%", "'\"%"),
    ],
)
def test_what_is_text_is_taken_as_that_text(path: Path, given, key: str) -> None:
    with RolloutStore(path) as store:
        cache = RolloutCache(store=store)
        cache.add(PROMPT, [5], key=given)
        store.flush()
        (one,) = store.rollouts(key=given)
        assert (one.key, type(one.key)) == (key, str)
        assert [r.id for r in store.rollouts(key=key)] == [one.id]
        again = RolloutCache(store=store)
        again.open(PROMPT, key=given)
        assert again.stats().rollouts == 1


@pytest.mark.parametrize("name", ["version", "sample"])
def test_numbers_are_whole_or_refused(path: Path, name: str) -> None:
    with RolloutStore(path) as store:
        for number in BAD_WHOLE[name == "sample" :]:  # no sample is allowed
            with pytest.raises(InvalidInputError, match=f"^{name} = "):
                store.add(PROMPT, [1], **{name: number})
        for number in GOOD_WHOLE:
            store.add(PROMPT, [1], **{name: number})
        store.flush()
        found = [getattr(one, name) for one in store]
        assert found == [int(number) for number in GOOD_WHOLE]
        assert {type(number) for number in found} == {int}


def test_whole_numbers_one_by_one() -> None:
    for number in BAD_WHOLE:
        with pytest.raises(InvalidInputError, match="v = "):
            as_version(number, "v")
    for number in (-1, 8):
        with pytest.raises(InvalidInputError, match="from 0 to 7"):
            as_integer(number, "n", 0, 7)
    assert as_key(None) is None


@pytest.mark.parametrize("limit", ["last", "window", "max_tokens"])
def test_limits_are_whole_or_refused(path: Path, limit: str) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [1])

        def call(number):
            if limit == "last":
                return len(store.rollouts(PROMPT, last=number))
            return store.load_into(RolloutCache(), **{limit: number})

        for number in (1.5, -1, float("nan"), "1", True, 2**64, [1]):
            with pytest.raises(InvalidInputError, match=f"^{limit} = "):
                call(number)
        assert [call(number) for number in (0, 1, np.int32(1), 2.0, 2**63 - 1, None)] == [0, 1, 1, 1, 1, 1]
        with pytest.raises(InvalidInputError, match="version"):
            store.load_into(RolloutCache(), version=1.5)


@pytest.mark.parametrize("reward", ["0.5", b"1", 1j, [1, 2], 10**400, Odd()])
def test_what_is_no_reward_is_refused(path: Path, reward) -> None:
    with RolloutStore(path) as store, pytest.raises(InvalidInputError, match=r"^reward = "):
        store.add(PROMPT, [1], reward=reward)


def test_rewards_are_plain_numbers_and_nan_is_none(path: Path) -> None:
    given = [
        None,
        float("nan"),
        np.float32(0.5),
        1,
        True,
        np.bool_(0),
        float("inf"),
        -float("inf"),
        -0.0,
        5e-324,
        np.array(2.0),
    ]
    with RolloutStore(path) as store:
        for reward in given:
            store.add(PROMPT, [1], reward=reward)
        store.flush()
        found = [one.reward for one in store]
    assert found == [None, None, 0.5, 1.0, 1.0, 0.0, float("inf"), -float("inf"), 0.0, 5e-324, 2.0]
    assert {type(reward) for reward in found} == {float, type(None)}


@pytest.mark.parametrize(
    "logprobs",
    [[0.0], [0.0] * 3, [[0.0, 0.0]], 0.5, "ab", ["a", "b"], [1e300, 0], [0, [1]], {0: 1}, [1j, 0], Odd(), [True, "x"]],
)
def test_log_probabilities_are_one_number_for_each_token(path: Path, logprobs) -> None:
    with RolloutStore(path) as store, pytest.raises(InvalidInputError, match=r"^logprobs = "):
        store.add(PROMPT, [1, 2], logprobs=logprobs)


def test_log_probabilities_may_be_missing_or_infinite(path: Path) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [1, 2, 3, 4], logprobs=[None, -np.inf, np.float64(-0.1), -3])
        (one,) = store
    np.testing.assert_array_equal(one.logprobs, np.array([np.nan, -np.inf, -0.1, -3], np.float32))


@pytest.mark.parametrize(
    "context",
    [
        1,
        [1, 2],
        [(0, 1, 2)],
        [(0.5, 1)],
        [("0", "1")],
        [(True, 1)],
        [(-1, 1)],
        [(1, 0)],
        [(0, 2), (1, 2)],
        [(0, 3)],
        Odd(),
        "01",
    ],
)
def test_spans_are_pairs_in_order(path: Path, context) -> None:
    with RolloutStore(path) as store, pytest.raises(InvalidInputError, match=r"^context = "):
        store.add(PROMPT, [1, 2], context=context)


@pytest.mark.parametrize(
    "tokens", [[[1], [2, 3]], "ab", None, [2**31], [10**30], [1.0], [True], ["1"], {1}, Odd(), [[1, 2]]]
)
def test_tokens_are_a_flat_list_of_ids(path: Path, tokens) -> None:
    with pytest.raises(InvalidInputError, match="tokens"):
        as_tokens(tokens)
    with RolloutStore(path) as store:
        with pytest.raises(InvalidInputError, match="token_ids"):
            store.add(PROMPT, tokens)
        with pytest.raises(InvalidInputError, match="prompt_token_ids"):
            store.add(tokens, [1])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
    | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = ("key", "version", "sample", "reward", "logprobs", "context")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING), ANYTHING | st.lists(st.integers(0, 2**31 - 1)), ANYTHING)
def test_whatever_passes_the_checks_can_be_written_and_read(fields, tokens, prompt) -> None:
    """The writer's thread never meets a value that SQLite refuses."""
    from rolltree.store.rows import COLUMNS, Packed, rollout_of
    from rolltree.store.schema import _TABLES

    try:
        rollout = StoredRollout.of([1, 2] if random.Random(repr(prompt)).random() < 0.5 else prompt, tokens, **fields)
    except InvalidInputError:
        return
    with sqlite3.connect(":memory:", isolation_level=None) as database:
        for statement in _TABLES.split(";"):
            database.execute(statement)
        Packed.of(rollout).write(database, 1)
        (row,) = database.execute(COLUMNS).fetchall()
    back = rollout_of(row, Path("x"))
    for name in ("key", "version", "sample", "reward", "context"):
        assert getattr(back, name) == getattr(rollout, name)
    np.testing.assert_array_equal(back.token_ids, rollout.token_ids)


def test_an_error_can_show_any_value_and_travels_between_processes() -> None:
    for value in (10**5000, Odd(), "x" * 10**6, list(range(10**5))):
        assert len(str(InvalidInputError("name", value, "less"))) < 400
    error = pickle.loads(pickle.dumps(InvalidInputError("name", 3, "less", "Do it.")))
    assert (str(error), error.name, error.fix) == ("name = 3: must be less. Do it.", "name", "Do it.")


LOOKING = {"info": info, "verify": verify, "compact": compact, "open": lambda path: RolloutStore(path, make=False)}


@pytest.mark.parametrize(
    "place", ["", ":memory:", "file:x.db", "file::memory:?cache=shared", "a\0b", "\ud83d.db", b"x.db", None, 7, Odd()]
)
def test_names_that_are_no_file_are_refused(tmp_path: Path, monkeypatch, place) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (RolloutStore, *LOOKING.values()):
        with pytest.raises(InvalidInputError, match=r"store.path"):
            call(place)
    assert list(tmp_path.iterdir()) == []


def test_folders_devices_pipes_and_long_names_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", "/dev/null", "/dev/full"):
        for call in (RolloutStore, *LOOKING.values()):
            with pytest.raises(InvalidInputError, match="must be a file"):
                call(place)
    (tmp_path / "around").symlink_to(tmp_path / "around")
    for place in (tmp_path / ("x" * 300), tmp_path / "around"):
        with pytest.raises(RolltreeError, match="name"):
            RolloutStore(place)
    for call in LOOKING.values():
        with pytest.raises(InvalidInputError, match="a file"):
            call(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


def test_a_file_name_may_be_of_any_bytes(tmp_path: Path) -> None:
    for name in ("with space?mode=memory#%41&.db", "naïve.db", os.fsdecode(b"latin-\xe9.db"), "-.db", "[b]x[nob].db"):
        with RolloutStore(tmp_path / name) as store:
            store.add(PROMPT, [1])
        assert (tmp_path / name).is_file()
        assert info(tmp_path / name).rollouts == 1
        assert verify(tmp_path / name) == []


def test_a_store_goes_with_its_file_and_not_with_the_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with RolloutStore("r.db") as store:
        monkeypatch.chdir("elsewhere")
        store.add(PROMPT, [1])
        assert len(list(store)) == 1
        with pickle.loads(pickle.dumps(store)) as again:
            assert len(again) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"prompt_token_ids": [1]}\n', "JSON lines"), (b"[1]", "JSON"), (gzip.compress(b"{}"), "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "Zstandard"), (b"PAR1" + bytes(900), "Parquet"),
        (b"PK\3\4" + bytes(900), "zip"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, data: bytes, kind: str) -> None:
    place = tmp_path / "x.db"
    place.write_bytes(data)
    for call in (RolloutStore, *LOOKING.values()):
        with pytest.raises(InvalidInputError, match=kind) as caught:
            call(place)
        assert "damaged" not in str(caught.value)
    assert place.read_bytes() == data
    assert [one.name for one in tmp_path.iterdir()] == ["x.db"]


@pytest.mark.parametrize("data", [b"x", b"text " * 500, b"\0" * 5000, b"SQLite format 3" + b"x" * 5000])
def test_a_file_of_no_kind_is_no_store(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "x.db"
    place.write_bytes(data)
    with pytest.raises(StoreCorruptedError, match="move the file away"):
        RolloutStore(place)
    assert place.read_bytes() == data


def test_an_emptied_store_is_not_sound(tmp_path: Path, caplog) -> None:
    place = tmp_path / "r.db"
    RolloutStore(place).close()
    place.write_bytes(b"")
    assert verify(place) == [f"{place} is empty (0 bytes): whatever it held is gone"]
    for call in (info, compact, LOOKING["open"]):
        with pytest.raises(InvalidInputError, match="nothing in it"):
            call(place)
    assert place.stat().st_size == 0
    with RolloutStore(place) as store:  # as a file from mkstemp is
        store.add(PROMPT, [1])
    assert "was an empty file" in caplog.text
    assert verify(place) == []


def test_a_store_that_is_used_may_be_looked_at_in_the_same_process(path: Path) -> None:
    """Opening and closing the file otherwise than by SQLite would drop its locks, and another process break it."""
    import subprocess
    import sys

    from rolltree.store.traces import export_traces, import_traces

    held = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)"
    with RolloutStore(path) as store:
        store.add(PROMPT, [1])
        store.flush()
        info(path), verify(path), compact(path, window=5)
        with RolloutStore(path):
            pass
        for call in (lambda: import_traces(store, path), lambda: export_traces(store, path, overwrite=True)):
            with pytest.raises(InvalidInputError, match="store"):
                call()
        done = subprocess.run([sys.executable, "-c", held, str(path)], capture_output=True, text=True)
        assert "BlockingIOError" in done.stderr, "the store's lock on its file is gone"


def test_a_foreign_writer_s_mistakes_are_no_damage(path: Path) -> None:
    with RolloutStore(path) as store:
        for query, error in (
            ("SELECT ?", InvalidInputError), ("INSERT INTO rollout (id) VALUES (1)", InvalidInputError),
            ("INSERT INTO prompt (id, digest, length, tokens) VALUES ('x', 'x', 1, 1)", InvalidInputError),
            ("SELECT nothing FROM rollout", StoreCorruptedError), ("PRAGMA journal_mode = nonsense", None),
        ):  # fmt: skip
            if error is None:
                store._reader._database.execute(query)
                continue
            with pytest.raises(error) as caught:
                store._reader._database.execute(query)
            assert ("damaged" in str(caught.value)) == (error is StoreCorruptedError)
        store.close()
        for call in (
            lambda: len(store),
            lambda: list(store),
            lambda: store.rollouts(PROMPT),
            store.flush,
            lambda: store.load_into(RolloutCache()),
        ):
            with pytest.raises(InvalidInputError, match="must be open"):
                call()


def test_store_errors_are_not_value_errors_of_the_caller() -> None:
    assert not issubclass(StoreError, ValueError)
    assert json.dumps(str(StoreError("x")))
