"""`rolltree bench draft`: microseconds to draft for a batch and to take in what was emitted, by batch size and threads.

The longest single calls of a full cache with long rollouts come with it (see `pauses`), and the time of a whole step as
one native call without Python (`rolltree._native.Step`), which an engine's stream could make itself.

The trees hold history, the live requests walk through their recorded rollouts a token a step. Timed is what an engine
calls: `TreeDrafter.draft` (gathering, ranking, budget) and `TreeDrafter.advance` (learning, appending), with the tree
that all prompts share. Percentiles are over steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from rolltree import machine
from rolltree._native import Step
from rolltree.bench.pauses import measure_pauses
from rolltree.bench.rebuild import LONGEST_REBUILT, measure_rebuild
from rolltree.bench.workload import Group, take
from rolltree.budget import CostModel
from rolltree.cache import RolloutCache
from rolltree.config import CacheConfig, DraftConfig
from rolltree.drafting import TreeDrafter

SHAPES = {
    "chain of 16": DraftConfig(max_draft=16),
    "tree of 16": DraftConfig(max_draft=16, shape="tree", min_survival=0.01),
    "tree of 64": DraftConfig(max_draft=64, shape="tree", min_survival=0.002),
}
COST = CostModel(base=1.0, token=1e-6)
"""A budget that leaves nothing out: the worst case for the time of drafting."""


def run_draft(
    data: dict[str, list[Group]],
    *,
    live: Sequence[int] = (1, 32, 256, 1024),
    threads: Sequence[int] = (1, 2),
    steps: int = 100,
    rows: Sequence[int] = (1, 8, 32, 64, 128, 256, 512),
    long: Sequence[int] = (8192, 32768),
    progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:
    """Measure drafting by data set, shape, live requests and threads; pauses with rollouts of `long` tokens.

    And native steps of a chain of 16 for each number of `rows`.

    Returns:
        `{"cases": [{case, live_requests, threads, shape, microseconds_per_request, batch_milliseconds_p50, ..._p99,
        update_microseconds_per_token, drafted_per_request}], "steps": [{case, rows, threads, step_milliseconds_p50,
        ..._p99, drafted_per_request}], "pauses": [see `measure_pauses`], "rebuild": see `measure_rebuild`; None
        without `long`}`.

    """
    cases = []
    for name, groups in data.items():
        for n in live:
            for shape, config in SHAPES.items():
                for count in threads if n > 1 else threads[:1]:
                    progress(f"{name}, {n} live, {shape}, {count} threads")
                    case = {"case": name, "live_requests": n, "threads": count, "shape": shape}
                    cases.append(case | _measure(groups, n, config, count, steps))
    native = [
        {"case": name, "rows": n, "threads": max(threads)} | _measure_step(groups, n, max(threads), steps, progress)
        for name, groups in data.items()
        for n in rows
    ]
    pauses = measure_pauses(long, progress=progress)
    rebuild = measure_rebuild(length=min(LONGEST_REBUILT, *long), progress=progress) if long else None
    found = {"cases": cases, "steps": native, "pauses": pauses, "rebuild": rebuild}
    return {**found, "machine": machine.describe(("numpy",))}


def _measure_step(
    groups: Sequence[Group], rows: int, threads: int, steps: int, progress: Callable[[str], None]
) -> dict[str, float]:
    progress(f"native step, {rows} rows")
    config = SHAPES["chain of 16"]
    drafter, handles, texts = _drafter(take(groups, rows, len(groups[0].now)), config, threads)
    buffers = np.zeros((1, rows * (3 + config.max_draft)), np.int32)
    step = Step(drafter.cache._forest, rows, config.max_draft, buffers)
    text = np.stack([np.resize(text, steps + 1) for text in texts]).astype(np.int32)
    seconds, drafted = [], 0
    for done in range(steps):
        turn = step.next()
        assert turn is not None
        turn.sessions[:], turn.slots[:], turn.ends[:] = handles, np.arange(rows), 2**30
        turn.limits[:] = config.max_draft
        buffers[0, :rows], buffers[0, rows : 2 * rows] = 1, done + 1
        step.hand_over(
            rows, text, vocabulary=2**31 - 1, room=2**31, min_survival=config.min_survival,
            min_match=config.min_match, budget=True, base=COST.base, token=COST.token,
        )  # fmt: skip
        begin = time.perf_counter()
        step.run(turn)
        seconds.append(time.perf_counter() - begin)
        drafted += int(buffers[0, 2 * rows :: 1 + config.max_draft].sum())
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {
        "step_milliseconds_p50": float(p50),
        "step_milliseconds_p99": float(p99),
        "drafted_per_request": drafted / steps / rows,
    }


def _measure(groups: Sequence[Group], live: int, config: DraftConfig, threads: int, steps: int) -> dict[str, float]:
    chosen = take(groups, live, len(groups[0].now))
    drafter, handles, texts = _drafter(chosen, config, threads)
    limits = np.full(len(handles), config.max_draft, np.int32)
    offsets = np.arange(len(handles) + 1, dtype=np.int32)
    seconds, updates, drafted = [], [], 0
    for step in range(steps):
        begin = time.perf_counter()
        batch = drafter.draft(handles, limits)
        seconds.append(time.perf_counter() - begin)
        drafted += int(batch.lengths.sum())
        tokens = np.array([t[step % len(t)] for t in texts], np.int32)
        begin = time.perf_counter()
        drafter.advance(handles, tokens, offsets)
        updates.append(time.perf_counter() - begin)
    p50, p99 = np.percentile(seconds, [50, 99])
    return {
        "microseconds_per_request": float(p50) / len(handles) * 1e6,
        "batch_milliseconds_p50": float(p50) * 1e3,
        "batch_milliseconds_p99": float(p99) * 1e3,
        "update_microseconds_per_token": float(np.median(updates)) / len(handles) * 1e6,
        "drafted_per_request": drafted / steps / len(handles),
    }


def _drafter(
    groups: Sequence[Group], config: DraftConfig, threads: int
) -> tuple[TreeDrafter, np.ndarray, list[np.ndarray]]:
    drafter = TreeDrafter(RolloutCache(CacheConfig(threads=threads)), config, cost=COST)
    for group in groups:
        for rollout in group.history:
            drafter.cache.add(group.prompt, rollout)
    drafter.cache.set_version(1)
    handles = [drafter.open(group.prompt) for group in groups for _ in group.now]
    return drafter, np.array(handles, np.int64), [np.asarray(r) for g in groups for r in g.now]
