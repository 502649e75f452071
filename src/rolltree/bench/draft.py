"""`rolltree bench draft`: microseconds to draft for a batch, chain and tree, by batch size.

The trees hold history, the live requests stand in the middle of their rollouts. Only the draft call is timed, on one
thread; percentiles are over calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from rolltree import machine
from rolltree._native import Drafts, Forest
from rolltree.bench.subjects import DEPTH, MIN_PROBABILITY
from rolltree.bench.workload import Group, take

SHAPES = {"chain of 16": (16, False), "tree of 16": (16, True), "tree of 64": (64, True)}


def run_draft(
    data: dict[str, list[Group]],
    *,
    live: Sequence[int] = (1, 32, 256, 1024),
    steps: int = 100,
    progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:
    """Measure the draft call for each data set, shape and number of live requests.

    Returns:
        `{"cases": [{case, live_requests, shape, microseconds_per_request, batch_milliseconds_p50, ..._p99, drafted}]}`.

    """
    cases = []
    for name, groups in data.items():
        for n in live:
            for shape, (width, tree) in SHAPES.items():
                progress(f"{name}, {n} live, {shape}")
                cases.append(
                    {"case": name, "live_requests": n, "shape": shape, **_measure(groups, n, width, tree, steps)}
                )
    return {"cases": cases, "machine": machine.describe(("numpy",))}


def _measure(groups: Sequence[Group], live: int, width: int, tree: bool, steps: int) -> dict[str, float]:
    chosen = take(groups, live, len(groups[0].now))
    forest, handles, texts = _forest(chosen)
    out, limits = Drafts(len(handles), width), np.full(len(handles), width, np.int32)
    offsets = np.arange(len(handles) + 1, dtype=np.int32)
    seconds, drafted = [], 0
    for step in range(steps):
        begin = time.perf_counter()
        forest.draft_batch(handles, limits, MIN_PROBABILITY if not tree else 0.01, 1, tree, out)
        seconds.append(time.perf_counter() - begin)
        drafted += int(out.lengths.sum())
        forest.append_batch(handles, np.array([t[step % len(t)] for t in texts], np.int32), offsets)
    p50, p99 = np.percentile(seconds, [50, 99])
    return {
        "microseconds_per_request": float(p50) / len(handles) * 1e6,
        "batch_milliseconds_p50": float(p50) * 1e3,
        "batch_milliseconds_p99": float(p99) * 1e3,
        "drafted_per_request": drafted / steps / len(handles),
    }


def _forest(groups: Sequence[Group]) -> tuple[Forest, np.ndarray, list[np.ndarray]]:
    forest, handles = Forest(depth=DEPTH, window=2**20), []
    for group in groups:
        tree = forest.add_tree(group.prompt)
        for rollout in group.history:
            session = forest.open(tree)
            forest.append(session, rollout)
            forest.close(session)
        handles += [forest.open(tree) for _ in group.now]
    return forest, np.array(handles, np.int64), [np.asarray(r) for g in groups for r in g.now]
