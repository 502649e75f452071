"""Epochs of a made workload in the replay's simulated engine, one process for each case, so that memory is its own.

The capacity is that of the whole training times the part of its prompts that is run, and so is the number of rollouts
in the tree that all prompts share: otherwise it would hold an epoch of a small part, as it never does of the whole.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.workload import Shape, Workload
from rolltree import machine
from rolltree.config import CacheConfig
from rolltree.metrics import add_up, ratio, with_ratios
from rolltree.replay.budgets import GivenCost
from rolltree.replay.drafters import DrafterSpec, Limits, ReplayDrafter
from rolltree.replay.profiles import load_profile
from rolltree.replay.reading import TraceReader
from rolltree.replay.records import Rollout
from rolltree.replay.simulator import Simulator
from rolltree.replay.stores import CaseStore, Stores
from rolltree.replay.tally import Tally

WHOLE = 17_000
"""Prompts of DAPO-Math-17k."""
UNBOUNDED = 2**40
CASES = {
    "all in memory": (64, False, False),
    "store": (64, True, True),
    "store, last 16": (16, True, True),
    "no store": (64, True, False),
}
"""Rollouts of a prompt that a tree holds, whether memory is bounded, whether there is a store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What is run."""

    files: tuple[Path, ...]
    shape: Shape
    epochs: int
    capacity: int
    """Of the whole training, bytes."""
    slots: int
    store: str
    """See `Stores.at`; a folder gets one for each case."""
    cost: str = "h100-7b"

    @property
    def bytes(self) -> int:
        """Of the trees of the prompts that are run."""
        return self.capacity * self.shape.prompts // WHOLE

    @property
    def shared_window(self) -> int:
        """Rollouts in the tree that all prompts share."""
        return -(-CacheConfig().shared_window * self.shape.prompts // WHOLE)


def run(scale: Scale, cases: Sequence[str], progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the cases one after the other; the document of `python -m benchmarks.scale run`."""
    done = []
    for name in cases:
        progress(name)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            done.append(process.submit(_case, scale, name).result())
    base = next((case for case in done if case["case"] == "all in memory"), None)
    for case in done:
        case["share_of_all_in_memory"] = case["tokens_per_step"] / base["tokens_per_step"] if base else None
    shape = scale.shape
    return {
        "prompts": shape.prompts, "samples": shape.samples, "step": shape.step, "part": shape.prompts / WHOLE,
        "epochs": scale.epochs, "slots": scale.slots, "cost_profile": scale.cost, "capacity_bytes": scale.capacity,
        "bytes": scale.bytes, "shared_window": scale.shared_window, "cases": done, "machine": machine.describe(),
    }  # fmt: skip


def _case(scale: Scale, name: str) -> dict[str, Any]:
    window, bounded, stored = CASES[name]
    workload = Workload([list(TraceReader().read([file])) for file in scale.files], scale.shape)
    spec = DrafterSpec.parse(f"rolltree:window={window}:shared_window={scale.shared_window}")
    limits = Limits(capacity_bytes=scale.bytes if bounded else UNBOUNDED)
    before, begin = _rss(), time.process_time()
    if not stored:
        epochs = _epochs(scale, workload, spec.make(limits), CaseStore(), name)
        return _document(name, epochs, before, time.process_time() - begin)
    where = scale.store if scale.store == "temporary" else str(Path(scale.store) / name.replace(", ", "-"))
    with Stores.at(where).of(name) as kept:
        epochs = _epochs(scale, workload, spec.make(limits, kept.store), kept, name)
    assert kept.info is not None
    document = _document(name, epochs, before, time.process_time() - begin)
    size = {"store_bytes": kept.info.bytes, "store_bytes_per_token": ratio(kept.info.bytes, kept.info.tokens)}
    return document | size


def _epochs(
    scale: Scale, workload: Workload, drafter: ReplayDrafter, kept: CaseStore, name: str
) -> list[dict[str, float]]:
    epochs, peaks, version = [], list[int](), 0
    for epoch in range(scale.epochs):
        sums: dict[str, float] = {}
        for rollouts in workload.steps(epoch):
            drafter.begin(version)
            version += 1
            counted, peak = _step(scale, drafter, rollouts)
            sums = add_up(sums, counted)
            peaks.append(peak)
            if kept.store is not None:
                kept.store.flush()
            print(f"{name}, epoch {epoch + 1}: {sums['tokens'] / sums['row_steps']:.3f} tokens/step", file=sys.stderr)
        held, tokens = drafter.memory()
        now = {"tree_bytes": held, "tree_tokens": tokens, "peak_rss_bytes": _rss(), "peak_tree_bytes": max(peaks)}
        epochs.append(sums | now)
    return epochs


def _step(scale: Scale, drafter: ReplayDrafter, rollouts: list[Rollout]) -> tuple[dict[str, float], int]:
    """Generate one training step; its sums, and the most bytes of all trees."""
    profile, limits = load_profile(scale.cost), Limits()
    tally, moved = Tally(len(rollouts), limits.max_draft), drafter.moved()
    simulator = Simulator(
        rollouts, drafter, profile, tally, slots=scale.slots, max_draft=limits.max_draft, budget=GivenCost(profile)
    )
    simulator.run()
    tally.memory(*drafter.memory())
    evicted, rebuilt = drafter.moved()
    return {
        "tokens": sum(len(r.tokens) for r in rollouts), "row_steps": int(tally.row_steps.sum()),
        "drafted": int(tally.drafted.sum()), "accepted": int(tally.accepted.sum()),
        "evicted_prompts": evicted - moved[0], "rebuilt_prompts": rebuilt - moved[1],
        "generation_seconds": simulator.clock, "open_seconds": tally.open_seconds,
        "draft_seconds": tally.draft_seconds, "update_seconds": tally.update_seconds,
    }, tally.peak_bytes  # fmt: skip


def _document(name: str, epochs: list[dict[str, float]], before: int, seconds: float) -> dict[str, Any]:
    held = ("tree_bytes", "tree_tokens", "peak_rss_bytes", "peak_tree_bytes")
    sums = add_up(*[{key: value for key, value in epoch.items() if key not in held} for epoch in epochs])
    most = {key: max(epoch[key] for epoch in epochs) for key in held}
    load = os.getloadavg()[1]  # of the last 5 minutes: what the seconds are worth
    return {
        "case": name, "load_average": load, **with_ratios(sums), **most, "rss_bytes_before": before,
        "cpu_seconds": seconds,
        "epochs": [with_ratios(epoch) for epoch in epochs],
    }  # fmt: skip


def _rss() -> int:
    """The most memory that this process had so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
