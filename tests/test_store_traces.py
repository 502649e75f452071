"""Export and import: inverse, whole or not at all, never onto a store, and any line a rollout or a sentence."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree import RolloutCache, RolloutStore
from rolltree.errors import InvalidInputError, RolltreeError, StoreError
from rolltree.serving.load import load_rollouts
from rolltree.store import StoredRollout, verify
from rolltree.store.traces import export_traces, import_traces
from rolltree.traces.format import line_of, rollout_of_line

TOKENS = st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 300), max_size=12)
WHOLE = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5)


@st.composite
def rollouts(draw: st.DrawFn) -> StoredRollout:
    tokens = draw(TOKENS)
    count = len(tokens)
    edges = sorted(
        draw(st.lists(st.integers(0, count), max_size=3).map(lambda cuts: cuts + cuts[:1] * (len(cuts) % 2)))
    )
    return StoredRollout.of(
        draw(TOKENS), tokens, key=draw(st.none() | st.sampled_from(["", "a", "nul\0"]) | st.text(max_size=5)),
        version=draw(WHOLE), sample=draw(st.none() | WHOLE), reward=draw(st.none() | st.floats()),
        logprobs=draw(st.none() | st.lists(st.floats(width=32), min_size=count, max_size=count)),
        context=list(zip(edges[::2], edges[1::2], strict=True)),
    )  # fmt: skip


def said(rollout: StoredRollout) -> tuple[object, ...]:
    """All that a rollout says, comparable; what NaN it is is not kept."""
    probs = rollout.logprobs
    if probs is not None:
        probs = np.where(np.isnan(probs), np.float32(np.nan), probs).tobytes()
    return (
        rollout.prompt_token_ids.tolist(), rollout.token_ids.tolist(), rollout.key, rollout.version,
        rollout.sample, rollout.reward, probs, rollout.context,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(rollouts())
def test_a_line_says_all_of_a_rollout(rollout: StoredRollout) -> None:
    line = json.dumps(line_of(rollout, Counter()), allow_nan=False)
    assert said(rollout_of_line(line.encode(), "here")) == said(rollout)
    for name in ("prompt_id", "step", "sample", "prompt_token_ids", "token_ids"):
        assert name in line  # the trace format's own, whatever else is there


@settings(max_examples=25, deadline=None)
@given(st.lists(rollouts(), max_size=8), st.sampled_from(["t.jsonl", "t.jsonl.gz"]))
def test_what_goes_out_comes_back(
    tmp_path_factory: pytest.TempPathFactory, added: list[StoredRollout], name: str
) -> None:
    folder = tmp_path_factory.mktemp("traces")
    with RolloutStore(folder / "a.db") as first, RolloutStore(folder / "b.db") as second:
        for rollout in added:
            first.put(rollout)
        assert export_traces(first, folder / name) == len(added)
        assert import_traces(second, folder / name) == len(added)
        assert [said(one) for one in second] == [said(one) for one in first] == [said(one) for one in added]
        for rollout in added:
            found = second.rollouts(rollout.prompt_token_ids, key=rollout.key)
            assert [said(one) for one in found] == [
                said(one) for one in first.rollouts(rollout.prompt_token_ids, key=rollout.key)
            ]


@pytest.fixture
def store(tmp_path: Path):
    with RolloutStore(tmp_path / "a.db") as made:
        for version in range(5):
            made.add([1, 2, 3], [10, 11, version], key="problem-17", version=version, context=[(1, 2)])
        made.flush()
        yield made


def test_samples_that_are_not_known_are_counted_for_others(store: RolloutStore, tmp_path: Path) -> None:
    store.add([1, 2, 3], [7], key="problem-17", version=4)
    export_traces(store, tmp_path / "t.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [(line["step"], line["sample"], line["sample_counted"]) for line in lines][-2:] == [
        (4, 0, True),
        (4, 1, True),
    ]


def targets(tmp_path: Path) -> dict[str, Path]:
    """Every way to name the store as its own target."""
    (tmp_path / "link").symlink_to(tmp_path / "a.db")
    (tmp_path / "folder").symlink_to(tmp_path)
    os.link(tmp_path / "a.db", tmp_path / "hard")
    return {
        "itself": tmp_path / "a.db", "a link": tmp_path / "link", "a hard link": tmp_path / "hard",
        "through a folder": tmp_path / "folder" / "a.db", "its log": tmp_path / "a.db-wal",
        "its index": tmp_path / "a.db-shm", "its journal": tmp_path / "a.db-journal",
    }  # fmt: skip


@pytest.mark.parametrize("force", [False, True])
def test_never_onto_an_input(store: RolloutStore, tmp_path: Path, force: bool) -> None:
    for name, target in targets(tmp_path).items():
        with pytest.raises(InvalidInputError, match=r"another file than (the|a) store"):
            export_traces(store, target, overwrite=force)
        assert len(list(store)) == 5, name
    with RolloutStore(tmp_path / "b.db") as other, pytest.raises(InvalidInputError, match="than a store"):
        export_traces(store, other.path, overwrite=True)
    with pytest.raises(InvalidInputError, match="than a store"):  # nor onto one that nobody uses
        export_traces(store, tmp_path / "b.db", overwrite=True)
    assert verify(tmp_path / "a.db") == verify(tmp_path / "b.db") == []


def test_targets_are_looked_at_before_anything_is_read(store: RolloutStore, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("precious")
    os.mkfifo(tmp_path / "pipe")

    def never():
        raise AssertionError("read before the target was looked at")
        yield

    for target, message in (
        ("old.jsonl", "--force"), (".", "a file"), ("pipe", "a file"), ("/dev/full", "a file"),
        ("none/x.jsonl", "folder"),
        ("x.jsonl.zst", "jsonl.gz"), ("x.parquet", "jsonl.gz"), ("", "a file|name of a file"), ("a\0b", "name"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            export_traces(never(), tmp_path / target if target else target)
    with pytest.raises(InvalidInputError, match="a path"):
        export_traces(never(), b"x.jsonl")
    assert (tmp_path / "old.jsonl").read_text() == "precious"


def test_an_existing_target_is_replaced_as_a_whole_when_asked(store: RolloutStore, tmp_path: Path) -> None:
    old, link = tmp_path / "old.jsonl", tmp_path / "link.jsonl"
    old.write_text("precious")
    old.chmod(0o640)
    link.symlink_to(old)
    assert export_traces(store, link, overwrite=True) == 5
    assert link.is_symlink()
    assert len(old.read_text().splitlines()) == 5
    assert old.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_export_that_fails_leaves_everything_as_it_was(store: RolloutStore, tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "t.jsonl"
    if overwrite:
        target.write_text("precious")
    before = sorted(one.name for one in tmp_path.iterdir())
    for error in (KeyboardInterrupt, MemoryError, OSError, StoreError):

        def fails(error=error):
            yield from list(store)[:3]
            raise error("in the midst")

        with pytest.raises((error, StoreError)):
            export_traces(fails(), target, overwrite=overwrite)
        assert sorted(one.name for one in tmp_path.iterdir()) == before
    assert not overwrite or target.read_text() == "precious"


def test_a_file_that_comes_meanwhile_is_not_written_over(store: RolloutStore, tmp_path: Path) -> None:
    target = tmp_path / "t.jsonl"

    def slow():
        yield from store
        target.write_text("theirs")

    with pytest.raises(InvalidInputError, match="meanwhile"):
        export_traces(slow(), target)
    assert target.read_text() == "theirs"


FULL = """
import resource, signal, sys
from rolltree import RolloutCache, RolloutStore
from rolltree.errors import StoreError
from rolltree.store.traces import export_traces
store = RolloutStore(sys.argv[1])
list(store)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # a disk that takes 300 bytes of a file
try:
    export_traces(store, sys.argv[2], overwrite=True)
except StoreError as error:
    print(error)
"""


def test_an_export_onto_a_full_disk_leaves_the_old_file(store: RolloutStore, tmp_path: Path) -> None:
    target = tmp_path / "t.jsonl"
    target.write_text("precious")
    done = subprocess.run([sys.executable, "-c", FULL, store.path, target], capture_output=True, text=True)
    assert "File too large. Nothing was written" in done.stdout, done.stderr
    assert target.read_text() == "precious"
    assert not list(tmp_path.glob(".*"))


KILLED = """
import os, signal, sys
from rolltree.store import StoredRollout
from rolltree.store.traces import export_traces
def rollouts():
    for i in range(9):
        yield StoredRollout.of([1], [i] * 9000)
    os.kill(os.getpid(), signal.SIGKILL)
export_traces(rollouts(), sys.argv[1])
"""


def test_a_killed_export_leaves_no_half_file_under_the_name(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "t.jsonl"])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "t.jsonl").exists()


GOOD = b'{"prompt_token_ids": [1], "token_ids": [2]}'
BAD_LINES = [
    b"{", b"null", b"7", b'"text"', b"[]", b"\xff\xfe\xfa", b"{}", b'{"prompt_token_ids": [1]}', b"[" * 100_000,
    b'{"prompt_token_ids": ' + b"[" * 5000 + b"]" * 5000 + b', "token_ids": [1]}',
    b'{"prompt_token_ids": [1], "token_ids": ' + b"9" * 5000 + b"}",
    b'{"prompt_token_ids": [1], "token_ids": [1e400]}', b'{"prompt_token_ids": [1], "token_ids": [[1], [2, 3]]}',
    b'{"prompt_token_ids": "text", "token_ids": [1]}', b'{"prompt_token_ids": [-1], "token_ids": [1]}',
    GOOD[:-1] + b', "step": null}', GOOD[:-1] + b', "step": "3"}', GOOD[:-1] + b', "step": NaN}',
    GOOD[:-1] + b', "step": 1.5}',
    GOOD[:-1] + b', "step": 9223372036854775808}', GOOD[:-1] + b', "reward": "high"}', GOOD[:-1] + b', "reward": [1]}',
    GOOD[:-1] + b', "key": 17}', GOOD[:-1] + b', "key": "\\ud83d"}', GOOD[:-1] + b', "logprobs": [1, 2]}',
    GOOD[:-1] + b', "logprobs": "x"}', GOOD[:-1] + b', "context": [[0, 2]]}', GOOD[:-1] + b', "context": {"a": 1}}',
    GOOD[:-1] + b', "sample": true}', GOOD + GOOD,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_line_that_is_no_rollout_is_named(tmp_path: Path, bad: bytes) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_bytes(b"\n".join([GOOD, b"", bad, GOOD]) + b"\n")
    with RolloutStore(tmp_path / "a.db") as store:
        with pytest.raises(InvalidInputError, match="line 3") as caught:
            import_traces(store, trace)
        assert len(str(caught.value)) < 1000
        left_out = list[InvalidInputError]()
        assert import_traces(store, trace, bad_line=left_out.append) == 2
        assert len(left_out) == 1
        assert len(store) == 3  # the line before it, and two


NAMES = st.sampled_from(
    ["prompt_token_ids", "token_ids", "step", "key", "reward", "context", "logprobs", "sample", "sample_counted"]
)


@settings(max_examples=300, deadline=None)
@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(NAMES | st.text(max_size=3), inner),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode())
)  # fmt: skip
def test_any_line_is_a_rollout_or_a_sentence(line: bytes) -> None:
    with suppress(InvalidInputError):
        assert isinstance(rollout_of_line(line, "here"), StoredRollout)


def test_lines_of_others_are_taken(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    lines = [
        b"\xef\xbb\xbf" + GOOD, GOOD + b"\r", GOOD[:-1] + b', "step": 3.0, "reward": NaN, "sample": null}',
        GOOD[:-1] + b', "logprobs": [null], "prompt_id": "p", "turns": [], "reward": true}',
        GOOD[:-1] + b', "logprobs": ["-Infinity"], "reward": "Infinity", "context": null}',
    ]  # fmt: skip
    trace.write_bytes(b"\n".join(lines))
    with RolloutStore(tmp_path / "a.db") as store:
        assert import_traces(store, trace) == 5
        assert [(one.version, one.reward) for one in store] == [
            (0, None),
            (0, None),
            (3, None),
            (0, 1.0),
            (0, float("inf")),
        ]


def test_broken_and_other_files_are_sentences(store: RolloutStore, tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join([GOOD] * 5000))
    files = {
        "torn.gz": whole[:-20], "flipped.gz": whole[:60] + b"\xff" + whole[61:], "not.gz": b"\x1f\x8b" + b"x" * 90,
        "x.zst": b"\x28\xb5\x2f\xfd" + bytes(30), "x.parquet": b"PAR1" + bytes(90), "zip.jsonl": b"PK\3\4" + bytes(90),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with RolloutStore(tmp_path / "b.db") as into:
        for name in [*files, "missing", ".", "a.db"]:
            with pytest.raises(RolltreeError) as caught:
                import_traces(into, tmp_path / name)
            assert (str(tmp_path / name) in str(caught.value)) or name == "."
            assert "damaged" not in str(caught.value)
    assert len(store) == 5


def test_what_a_file_is_does_not_hang_on_its_name(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_bytes(GOOD)
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(GOOD) + gzip.compress(b"\n" + GOOD))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with RolloutStore(tmp_path / "a.db") as store:
        assert [import_traces(store, tmp_path / name) for name in ("plain.gz", "packed.jsonl", "empty.jsonl")] == [
            1,
            2,
            0,
        ]


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"printf '%s' '{GOOD.decode()}' > {pipe}"])
    with RolloutStore(tmp_path / "a.db") as store:
        assert import_traces(store, pipe) == 1
    assert writer.wait() == 0


def test_a_trace_fills_a_cache_as_a_store_of_it_does(store: RolloutStore, tmp_path: Path) -> None:
    """The version is that of the newest, each rollout has its own, and nothing is loaded of a file with a bad line."""
    trace, bad = tmp_path / "t.jsonl.gz", tmp_path / "bad.jsonl"
    export_traces(store, trace)
    bad.write_bytes(gzip.decompress(trace.read_bytes()) + b"no rollout")
    straight, by_store = RolloutCache(), RolloutCache()
    assert load_rollouts(straight, trace) == store.load_into(by_store) == len(store)
    assert straight.version == by_store.version
    assert straight.stats() == by_store.stats()
    empty = RolloutCache()
    with pytest.raises(InvalidInputError, match=r"bad\.jsonl, line 6"):
        load_rollouts(empty, bad)
    assert (empty.version, empty.stats().rollouts) == (0, 0)
