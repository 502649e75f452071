"""From counts to the numbers that are reported: one dictionary a case, a step, a file. Units are in the names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rolltree.metrics import add_up, ratio, ratios_of, with_ratios
from rolltree.replay.records import TrainingStep
from rolltree.replay.tally import BINS, Calibration, Tally

Numbers = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepRun:
    """One policy step as one drafter generated it."""

    step: TrainingStep
    tally: Tally
    seconds: float


def generation_seconds(runs: Sequence[StepRun]) -> float:
    """Seconds of all steps, one after the other."""
    return float(sum(run.seconds for run in runs))


def summary(runs: Sequence[StepRun]) -> Numbers:
    """Everything about a sequence of steps except what needs another drafter to compare with."""
    tallies = [run.tally for run in runs]
    tokens = sum(r.generated for run in runs for r in run.step.rollouts)
    row_steps = sum(int(t.row_steps.sum()) for t in tallies)
    latency = np.concatenate([t.finish for t in tallies])
    service = np.concatenate([t.finish - t.start for t in tallies])
    peak = max(tallies, key=lambda t: t.peak_bytes)
    opening = sum(t.open_seconds for t in tallies)
    host = opening + sum(t.draft_seconds + t.update_seconds for t in tallies)
    return {
        "rollouts": len(latency),
        "engine_steps": sum(t.engine_steps for t in tallies),
        **with_ratios({"tokens": tokens, "row_steps": row_steps, **_drafting(tallies)}),
        "generation_seconds": generation_seconds(runs),
        "generation_seconds_with_drafting": generation_seconds(runs) + host,
        **{f"latency_p{q}_seconds": float(np.percentile(latency, q)) for q in (50, 95, 99)},
        **{f"service_p{q}_seconds": float(np.percentile(service, q)) for q in (50, 95, 99)},
        "peak_tree_bytes": peak.peak_bytes,
        "tree_bytes_per_token": ratio(peak.peak_bytes, peak.indexed_tokens),
        "evicted_prompts": sum(t.evicted for t in tallies),
        "rebuilt_prompts": sum(t.rebuilt for t in tallies),
        "open_seconds": opening,
        "draft_microseconds_per_step": ratio(1e6 * sum(t.draft_seconds for t in tallies), row_steps),
        "update_microseconds_per_token": ratio(1e6 * sum(t.update_seconds for t in tallies), tokens),
    }


def _drafting(tallies: Sequence[Tally]) -> dict[str, int]:
    return {name: sum(int(getattr(t, name).sum()) for t in tallies) for name in ("drafted", "accepted")}


def by_position(runs: Sequence[StepRun]) -> list[Numbers]:
    """Drafted and accepted tokens by place in the draft; the first is 1."""
    drafted, accepted = (sum(getattr(run.tally, name) for run in runs) for name in ("drafted_at", "accepted_at"))
    pairs = zip(np.atleast_1d(drafted).tolist(), np.atleast_1d(accepted).tolist(), strict=True)
    return [
        {"position": place, **with_ratios({"drafted": d, "accepted": a})} for place, (d, a) in enumerate(pairs, 1) if d
    ]


def by_source(runs: Sequence[StepRun]) -> list[Numbers]:
    """Drafted and accepted tokens by whose text was copied."""
    sums: dict[str, dict[str, float]] = {}
    for run in runs:
        for name, (drafted, accepted) in run.tally.sources.items():
            sums[name] = add_up(sums.get(name, {}), {"drafted": drafted, "accepted": accepted})
    return [{"source": name, **with_ratios(row)} for name, row in sums.items()]


def calibration(runs: Sequence[StepRun]) -> Numbers:
    """Expected calibration error of the claimed survival, and its buckets.

    The error is the mean over verified tokens of |accepted share - mean claim| of their bucket (Naeini et al. 2015).
    """
    total = Calibration()
    for run in runs:
        total.merge(run.tally.calibration)
    error = float(np.abs(total.accepted - total.claimed).sum())
    buckets = [
        {"from": i / BINS, "to": (i + 1) / BINS, "nodes": int(n), "claimed": ratio(c, n), "accepted": ratio(a, n)}
        for i, (n, c, a) in enumerate(
            zip(total.nodes.tolist(), total.claimed.tolist(), total.accepted.tolist(), strict=True)
        )
        if n
    ]
    return {"expected_calibration_error": ratio(error, float(total.nodes.sum())), "calibration": buckets}


def by_file(runs: Sequence[StepRun]) -> list[Numbers]:
    """The rollouts of each file, whatever steps they were generated in."""
    names = dict.fromkeys(r.file for run in runs for r in run.step.rollouts)
    return [{"file": name, **_of_file(runs, name)} for name in names]


def _of_file(runs: Sequence[StepRun], name: str) -> Numbers:
    sums = dict.fromkeys(("row_steps", "drafted", "accepted"), 0)
    tokens, latency = 0, list[float]()
    for run in runs:
        mine = np.array([r.file == name for r in run.step.rollouts], np.bool_)
        tokens += sum(r.generated for r in run.step.rollouts if r.file == name)
        latency += run.tally.finish[mine].tolist()
        for key in sums:
            sums[key] += int(getattr(run.tally, key)[mine].sum())
    return {
        "rollouts": len(latency),
        "tokens": tokens,
        **ratios_of({"tokens": tokens, **sums}),
        "latency_p50_seconds": float(np.percentile(latency, 50)),
        "latency_p99_seconds": float(np.percentile(latency, 99)),
    }
