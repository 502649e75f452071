"""Several processes and sudden death: what was committed stays, what was not may go, the file is always sound."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rolltree import RolloutStore
from rolltree.errors import InvalidInputError
from rolltree.store import compact, verify

# Adds rollouts [writer, 0], [writer, 1], ... ; says after each flush how many are safe.
WRITER = """
import sys
from rolltree import RolloutStore
path, writer, count, every = sys.argv[1], *map(int, sys.argv[2:])
store = RolloutStore(path)
for i in range(count):
    store.add([writer, 1, 2], [writer, i] + [i % 50] * 200, version=i)
    if i % every == every - 1:
        store.flush()
        print(i + 1, flush=True)
"""


def start(path: Path, writer: int, count: int, every: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(writer), str(count), str(every)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def numbers(path: Path, writer: int) -> list[int]:
    with RolloutStore(path) as store:
        return [int(rollout.token_ids[1]) for rollout in store.rollouts([writer, 1, 2])]


def test_a_process_killed_at_any_moment_loses_nothing_it_was_told_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.db"
    for life in range(6):
        process = start(path, life, 10**6, 7)
        assert process.stdout is not None
        safe = [int(process.stdout.readline()) for _ in range(1 + 9 * life)][-1]
        process.send_signal(signal.SIGKILL)  # in the middle of whatever it does
        said = process.communicate()[0].splitlines()
        safe = int(said[-1]) if said and said[-1].isdigit() else safe
        found = numbers(path, life)
        assert len(found) >= safe
        assert found == list(range(len(found)))  # a beginning of what was added, without holes
        assert verify(path) == []


def test_a_process_that_just_ends_has_committed_everything(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.db"
    assert start(path, 3, 500, 10**6).wait(60) == 0
    assert numbers(path, 3) == list(range(500))


def test_many_processes_and_threads_write_and_read_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.db"
    writers = [start(path, writer, 400, 25) for writer in range(3)]  # all make the file at once
    with RolloutStore(path) as store:
        threads = [
            threading.Thread(target=lambda n=n: [store.add([n], [n, i]) for i in range(300)]) for n in (10, 11, 12)
        ]
        for thread in threads:
            thread.start()
        while any(writer.poll() is None for writer in writers):
            seen = [r.id for r in store]
            assert seen == sorted(set(seen))
        for thread in threads:
            thread.join()
        assert [writer.wait() for writer in writers] == [0, 0, 0]
        assert len(store) == 3 * 400 + 3 * 300
        for n in (10, 11, 12):
            assert [r.token_ids.tolist() for r in store.rollouts([n])] == [[n, i] for i in range(300)]
    for writer in range(3):
        assert numbers(path, writer) == list(range(400))
    assert verify(path) == []


def test_compact_beside_a_writer_loses_nothing_new(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.db"
    writer = start(path, 0, 3000, 50)
    assert writer.stdout is not None
    writer.stdout.readline()
    for _ in range(3):
        compact(path, window=2000)
    assert writer.wait(60) == 0
    assert numbers(path, 0)[-2000:] == list(range(1000, 3000))
    assert verify(path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_told_to_open_its_own(tmp_path: Path) -> None:
    with RolloutStore(tmp_path / "rollouts.db") as store:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                store.add([1], [2])
            except InvalidInputError:
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        store.add([1], [3])
        assert len(store) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_score_of_killed_writers_lose_nothing_acknowledged() -> None:
    """`make store-crash` kills 500 in the same way."""
    script = Path(__file__).parent / "store_crash.py"
    done = subprocess.run([sys.executable, str(script), "20"], capture_output=True, text=True)
    assert "20 writers killed" in done.stdout, done.stderr
    assert int(done.stdout.split("; ")[1].split()[0]) > 0


# Runs epochs of the toy host, each committed; says after each how many rollouts are safe.
HOST = """
import sys
from tests.toy_host import ToyHost
host = ToyHost(store=sys.argv[1])
for epoch in range(10**6):
    for n in range(8):
        host.add(f"{epoch}-{n}", [1, 2, n], version=epoch)
    host.run()
    print(8 * (epoch + 1), flush=True)
"""


def test_an_engine_killed_in_mid_step_has_kept_what_it_said(tmp_path: Path) -> None:
    """Two engines write to one file; the next one drafts from what they generated."""
    from tests.toy_host import ToyHost

    path = tmp_path / "rollouts.db"
    command = [sys.executable, "-c", HOST, str(path)]
    root = Path(__file__).parent.parent
    engines = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    safe = 0
    for engine in engines:
        assert engine.stdout is not None
        said = [int(engine.stdout.readline()) for _ in range(3)]
        engine.send_signal(signal.SIGKILL)
        safe += ([*said, *map(int, engine.communicate()[0].split())])[-1]
    assert verify(path) == []
    with RolloutStore(path) as store:
        assert len(store) >= safe >= 48
    host, cold = ToyHost(store=str(path), store_rebuild="blocking"), ToyHost()
    for each in (host, cold):
        for n in range(8):
            each.add(f"a-{n}", [1, 2, n], version=3)
    assert host.run() == cold.run()
    assert host.steps < 0.75 * cold.steps
