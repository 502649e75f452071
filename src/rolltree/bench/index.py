"""`rolltree bench index` and `bench draft`: speed and memory of the tree, beside the peer when it is installed.

Whole-response: every rollout of the history is indexed by one call. Lock step: all live requests draft, then append one
token, over and over. Each case runs several times, subjects in turn; figures are medians, `spread` holds the extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from rolltree import machine
from rolltree.bench.subjects import IndexSubject, Ours, OursShared, Peer, peer_installed
from rolltree.bench.workload import Group, take
from rolltree.types import Int32Array

Progress = Callable[[str], None]
Figures = dict[str, list[float]]


def run_index(
    data: dict[str, list[Group]],
    *,
    live: Sequence[int] = (1, 32, 256),
    steps: int = 256,
    repeats: int = 3,
    progress: Progress = lambda case: None,
) -> dict[str, object]:
    """Measure appending, memory and drafting for each data set.

    Args:
        data: groups by the name of the data set.
        live: numbers of live requests in lock step.
        steps: lock steps of each case (rollouts that end earlier leave).
        repeats: runs of each case.
        progress: called with the name of each case before it runs.

    Returns:
        `{"cases": [...], "machine": {...}}`, see docs; `peer` is None when arctic-inference is not installed.

    """
    subjects: list[Callable[[], IndexSubject]] = [Ours, OursShared, *([Peer] if peer_installed() else [])]
    cases = []
    for name, groups in data.items():
        progress(f"{name}, whole responses")
        whole = _repeat(subjects, repeats, partial(_whole, groups))
        cases.append(_case(f"{name}/whole-response", 1, whole))
        for n in live:
            progress(f"{name}, {n} live")
            chosen = take(groups, n, len(groups[0].now))
            lock = _repeat(subjects, repeats, partial(_lock_step, chosen, steps))
            cases.append(_case(f"{name}/lock-step", n, lock))
    return {"cases": cases, "repeats": repeats, "machine": machine.describe(("numpy", "arctic-inference"))}


def _repeat(
    subjects: Sequence[Callable[[], IndexSubject]], repeats: int, measure: Callable[[IndexSubject], dict[str, float]]
) -> list[Figures]:
    runs: list[Figures] = [{} for _ in subjects]
    for _ in range(repeats):
        for make, figures in zip(subjects, runs, strict=True):
            for key, value in measure(make()).items():
                figures.setdefault(key, []).append(value)
    return runs


def _whole(groups: Sequence[Group], subject: IndexSubject) -> dict[str, float]:
    tokens = sum(len(r) for g in groups for r in g.history)
    seconds = subject.load(groups)
    return {"append_tokens_per_second": tokens / seconds, "bytes_per_token": subject.bytes() / tokens}


def _lock_step(groups: Sequence[Group], steps: int, subject: IndexSubject) -> dict[str, float]:
    subject.load(groups)
    subject.start(groups)
    rollouts = [r for g in groups for r in g.now]
    drafting = appending = 0.0
    drafts = appended = 0
    for step in range(min(steps, max(map(len, rollouts)))):
        live: Int32Array = np.array([i for i, r in enumerate(rollouts) if step < len(r)], np.int32)
        tokens: Int32Array = np.array([rollouts[i][step] for i in live], np.int32)
        drafting += subject.draft(live)
        appending += subject.append(live, tokens)
        drafts += len(live)
        appended += len(live)
    subject.finish()
    total = appended + sum(len(r) for g in groups for r in g.history)
    return {
        "append_tokens_per_second": appended / appending,
        "draft_microseconds": drafting / drafts * 1e6,
        "batch_milliseconds": drafting / drafts * len(rollouts) * 1e3,
        "bytes_per_token": subject.bytes() / total,
    }


def _case(name: str, live: int, runs: Sequence[Figures]) -> dict[str, object]:
    ours, shared, *peers = [_summary(figures) for figures in runs]
    peer = peers[0] if peers else None
    return {
        "case": name,
        "live_requests": live,
        "rolltree": ours,
        "rolltree_with_shared_tree": shared,
        "peer": peer,
        "ratio": _ratios(ours, peer) if peer else None,
        "ratio_with_shared_tree": _ratios(shared, peer) if peer else None,
    }


def _summary(figures: Figures) -> dict[str, Any]:
    medians: dict[str, Any] = {key: median(values) for key, values in figures.items()}
    return medians | {"spread": {key: [min(values), max(values)] for key, values in figures.items()}}


def _ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float | None]:
    """How many times better ours is."""
    append = ours["append_tokens_per_second"] / peer["append_tokens_per_second"]
    draft = peer["draft_microseconds"] / ours["draft_microseconds"] if "draft_microseconds" in ours else None
    return {"append": append, "bytes": peer["bytes_per_token"] / ours["bytes_per_token"], "draft": draft}
