from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rolltree.bench.draft import run_draft
from rolltree.bench.index import run_index
from rolltree.bench.rebuild import measure_rebuild
from rolltree.bench.subjects import Ours, OursShared, peer_installed
from rolltree.bench.workload import Group, markov, recorded, take
from rolltree.errors import InvalidInputError


def test_markov_is_deterministic_and_repeats_itself() -> None:
    first, again = markov(2, 2, 200), markov(2, 2, 200)
    for a, b in zip(first, again, strict=True):
        assert all(
            (x == y).all() for x, y in zip([a.prompt, *a.history, *a.now], [b.prompt, *b.history, *b.now], strict=True)
        )
    longer = markov(3, 2, 200)
    assert (longer[0].now[0] == first[0].now[0]).all()
    bigrams = {tuple(p) for p in np.lib.stride_tricks.sliding_window_view(first[0].history[0], 2).tolist()}
    later = [tuple(p) for p in np.lib.stride_tricks.sliding_window_view(first[0].now[0], 2).tolist()]
    assert sum(p in bigrams for p in later) > 0.3 * len(later)


def test_take_gives_as_many_live_rollouts_as_asked() -> None:
    groups = markov(3, 4, 20)
    for live in (1, 3, 4, 10, 12, 30):
        assert sum(len(g.now) for g in take(groups, live, 4)) == live


def test_traces_are_joined_by_prompt(tmp_path: Path) -> None:
    def write(name: str, records: list[tuple[str, list[int]]]) -> Path:
        path = tmp_path / name
        with gzip.open(path, "wt") as file:
            for prompt, tokens in records:
                record = {"prompt_id": prompt, "step": 0, "sample": 0, "prompt_token_ids": [1], "token_ids": tokens}
                file.write(json.dumps(record) + "\n")
        return path

    earlier, later = write("a.gz", [("p", [1, 2]), ("q", [3])]), write("b.gz", [("p", [4]), ("r", [5]), ("p", [])])
    (group,) = recorded(earlier, later, 8)
    assert ([r.tolist() for r in group.history], [r.tolist() for r in group.now]) == ([[1, 2]], [[4]])
    with pytest.raises(InvalidInputError, match="share prompts"):
        recorded(write("c.gz", [("x", [1])]), later, 8)


def test_index_reports_every_case_with_the_contract_keys() -> None:
    document = run_index({"m": markov(2, 2, 60)}, live=(1, 3), steps=10, repeats=2)
    cases = document["cases"]
    assert [(c["case"], c["live_requests"]) for c in cases] == [
        ("m/whole-response", 1), ("m/lock-step", 1), ("m/lock-step", 3),
    ]  # fmt: skip
    for case in cases:
        ours = case["rolltree"]
        assert ours["append_tokens_per_second"] > 0
        assert ours["bytes_per_token"] > 4
        assert ("draft_microseconds" in ours) == ("lock-step" in case["case"])
        assert (case["peer"] is not None) == (case["ratio"] is not None) == peer_installed()
        low, high = ours["spread"]["append_tokens_per_second"]
        assert low <= ours["append_tokens_per_second"] <= high
    json.dumps(document)


def test_subjects_index_the_same_text() -> None:
    group = Group(np.arange(3, dtype=np.int32), [np.arange(9, dtype=np.int32)], [np.array([5], np.int32)])
    for make, copies in ((Ours, 1), (OursShared, 2)):
        subject = make()
        subject.load([group])
        stats = subject._forest.shared_stats()
        assert stats["kept"] == copies - 1
        subject.start([group])
        live = np.array([0], np.int32)
        subject.draft(live)
        subject.append(live, np.array([5], np.int32))
        assert subject._forest.count(subject._trees[0], np.array([2, 5], np.int32)) == 64
        subject.finish()


def test_rebuilding_reports_its_speed_and_every_call() -> None:
    found = measure_rebuild(prompts=3, samples=2, length=40, steps=6)
    assert (found["rollouts"], found["tokens"]) == (6, 240)
    assert found["tokens_per_second"] > 0
    for calls in found["milliseconds"].values():
        assert calls.keys() == {"open", "draft", "advance"}


def test_draft_reports_every_shape() -> None:
    document: Any = run_draft({"m": markov(2, 2, 60)}, live=(1, 4), threads=(1, 2), steps=5, rows=(3,), long=())
    cases, steps = document["cases"], document["steps"]
    assert [(s["rows"], s["drafted_per_request"] > 0, s["step_milliseconds_p99"] > 0) for s in steps] == [
        (3, True, True)
    ]
    assert [(c["live_requests"], c["threads"]) for c in cases] == [(1, 1)] * 3 + [(4, 1), (4, 2)] * 3
    assert all(c["microseconds_per_request"] > 0 for c in cases)
