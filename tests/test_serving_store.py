"""The store inside a host: what is kept, how trees come back while requests run, what is said when it is refused."""

from __future__ import annotations

import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from rolltree import RolloutStore
from rolltree.store.schema import connect
from tests.test_serving_host import PROMPTS, core_of, epoch, kept, plain
from tests.toy_host import VOCAB, ToyHost


def test_a_restarted_engine_drafts_from_what_the_first_one_kept(tmp_path: Path) -> None:
    """Two engines, one after the other: what the first generated comes back from the store, while requests run."""
    first = ToyHost(store=str(tmp_path / "rollouts.db"))
    texts = list(epoch(first, "first").values())
    core_of(first).close()
    steps = first.steps
    host = ToyHost(store=str(tmp_path / "rollouts.db"))
    core_of(host).expect([{"prompt_token_ids": prompt} for prompt in PROMPTS])
    core_of(host).drafter.cache.wait()
    assert core_of(host).stats()["cache_rebuilt_prompts"] == core_of(host).stats()["cache_prompts"] == len(PROMPTS)
    assert list(epoch(host, "second").values()) == texts
    assert host.steps < 0.75 * steps
    stats = core_of(host).stats()
    assert (stats["errors"], stats["store_waiting"], stats["store_dropped"]) == (0, 0, 0)
    assert stats["cache_rollouts"] == 16
    core_of(host).forget()
    host.add("again", PROMPTS[0])
    assert host.run()["again"] == texts[0]
    core_of(host).drafter.cache.wait()
    stats = core_of(host).stats()
    assert stats["cache_rollouts"] == 3  # two that came back, and the new one: none is there twice
    assert stats["store_commits"] >= 2
    host.add("cut", PROMPTS[1])
    host.step()
    host.step()
    core_of(host).close()
    core_of(host).close()
    with RolloutStore(tmp_path / "rollouts.db") as store:
        cut = store.rollouts(PROMPTS[1])[-1].token_ids.tolist()
    assert 2 <= len(cut) < len(texts[1])
    assert cut == texts[1][: len(cut)]


def test_a_tree_that_comes_late_joins_its_running_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store answers only after some steps, and after a sibling has ended: nothing is lost or there twice."""
    first = ToyHost(store=str(tmp_path / "rollouts.db"))
    texts = list(epoch(first, "first").values())
    core_of(first).close()
    host, gate = ToyHost(store=str(tmp_path / "rollouts.db"), slots=2), threading.Event()
    rebuilds = core_of(host).drafter.cache._prompts.rebuilds
    read = rebuilds._read
    monkeypatch.setattr(rebuilds, "_read", lambda *names: (gate.wait(60), read(*names))[1])
    host.add("short", PROMPTS[0], max_tokens=4)
    host.add("long", PROMPTS[0])
    while host.steps < 12:
        host.step()
    assert host.drafted == 0 or core_of(host).stats()["cache_rebuilt_prompts"] == 0
    assert core_of(host).stats()["cache_waiting_prompts"] == 1
    gate.set()
    core_of(host).drafter.cache.wait()
    cache = core_of(host).drafter.cache
    cache.check()
    assert cache.rollouts(PROMPTS[0]) == 2  # of before the restart, and the short one, which the store has, too
    drafted = host.drafted
    assert host.run()["long"] == texts[0]
    assert host.drafted > drafted
    assert kept(host, PROMPTS[0], texts[0])
    assert cache.rollouts(PROMPTS[0]) == 3


def read_only(*arguments: Any, **settings: Any) -> sqlite3.Connection:
    """A connection as to a file that may only be read, which root's tests cannot make."""
    database = connect(*arguments, **settings)
    database.execute("PRAGMA query_only = 1")
    return database


@pytest.mark.parametrize("kind", ["newer", "other model", "small vocabulary", "read-only", "no folder"])
def test_a_store_that_cannot_be_used_is_said_by_name(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation goes on, with the text that it has without."""
    path = tmp_path / ("none" if kind == "no folder" else ".") / "rollouts.db"
    if kind != "no folder":
        with RolloutStore(path) as store:
            store.identify(vocab=VOCAB + 1 if kind == "small vocabulary" else VOCAB, model="before")
            store.add(PROMPTS[0], plain(PROMPTS[0]))
    if kind == "newer":
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
    if kind == "read-only":
        before = path.read_bytes()
        monkeypatch.setattr("rolltree.store.connection.connect", read_only)
    said = {
        "newer": "goes on without its store: .* has store schema 99",
        "other model": "written for the model before, and this is toy",
        "small vocabulary": r"goes on without its store: store = .*holds ids of 41 words \(before\)",
        "read-only": "none is kept in it: .*readonly",
        "no folder": "goes on without its store: .*Make the folder first",
    }[kind]
    host = ToyHost(store=str(path), store_rebuild="blocking")
    assert re.search(said, caplog.text), caplog.text
    assert list(epoch(host, "a").values()) == [plain(prompt) for prompt in PROMPTS]
    stats = core_of(host).stats()
    off = kind in ("newer", "small vocabulary", "no folder")
    assert (stats["store_refused"], stats["errors"]) == (off, 0)
    assert stats["cache_rebuilt_prompts"] == (not off)
    if kind == "read-only":
        assert stats["store_waiting"] == len(PROMPTS)
        core_of(host).close()
        assert "8 rollouts lost" in caplog.text
        assert path.read_bytes() == before
