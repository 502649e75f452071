"""What verl's logger shows each step under `rolltree/`, from the servers' counters. Sums first, ratios last.

Pure: takes the counters of all replicas before and after a step. Seconds saved are an estimate, see `seconds_saved`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from rolltree.budget import CostModel, priced_steps
from rolltree.metrics import (
    DERIVED,
    CacheStats,
    DraftStats,
    StoreStats,
    add_up,
    docs_of,
    minus,
    ratio,
    with_ratios,
)

Sums = Mapping[str, float]

GAUGES = {
    "cache_bytes": "tree_bytes",
    "cache_prompts": "prompts",
    "cache_rollouts": "rollouts",
    "cache_sessions": "sessions",
    "cache_waiting_prompts": "waiting_prompts",
    "store_waiting": "store_waiting",
}
"""Counters that say how much is held now, and the names they are logged under."""
OLDER = {"tokens_run_ahead": "run_ahead_tokens", "tokens_validation": "validation_tokens"}
"""Sums that are logged under the names that they had first."""
AGE = "shared_age"
"""Seconds, of which the oldest replica's is logged."""
NOT_SUMS = {*DERIVED, AGE, "replicas", "seconds_saved", "run_ahead_on", "run_ahead_failures", *GAUGES.values()}
"""What of a step's numbers cannot be added up over steps."""
COST = tuple(f"cost_{field.name}" for field in fields(CostModel))


class Account:
    """Turns cumulative counters of the replicas into the numbers of a step."""

    def __init__(self) -> None:
        self._before: list[Sums | None] = []

    def step(self, counters: Sequence[Sums | None]) -> dict[str, float]:
        """Return the numbers since the last call.

        Args:
            counters: of each replica in a fixed order; None where it did not answer: its next answer covers both steps.
        """
        before = self._before + [None] * (len(counters) - len(self._before))
        pairs = [(now, then or {}) for now, then in zip(counters, before, strict=False) if now is not None]
        self._before = [now if now is not None else then for now, then in zip(counters, before, strict=False)]
        if not pairs:
            return {}
        return {f"rolltree/{name}": value for name, value in _numbers(pairs).items()}


def _numbers(pairs: Sequence[tuple[Sums, Sums]]) -> dict[str, float]:
    sums = add_up(dict.fromkeys(docs_of(DraftStats), 0), *(minus(_sums(now), then) for now, then in pairs))
    numbers = with_ratios(sums) | {"tokens_per_step": _of_rollouts(sums), "replicas": len(pairs)}
    numbers = {OLDER.get(name, name): value for name, value in numbers.items()}
    for counter, name in GAUGES.items():
        numbers[name] = sum(now.get(counter, 0) for now, _ in pairs)
    if ages := [now[AGE] for now, _ in pairs if AGE in now]:
        numbers[AGE] = max(ages)
    saved = [seconds_saved(now, then) for now, then in pairs]
    if known := [value for value in saved if value is not None]:
        numbers["seconds_saved"] = max(known)  # replicas generate side by side
    return numbers


def _sums(counters: Sums) -> dict[str, float]:
    """Those that only grow: what a replica counts is logged, also what this module does not know."""
    others = {*DERIVED, *COST, AGE, *(f"cache_{name}" for name in docs_of(CacheStats, held=True))}
    others |= {f"store_{name}" for name in docs_of(StoreStats, held=True)}
    return {name: value for name, value in counters.items() if name not in others}


def _of_rollouts(sums: Sums) -> float:
    """Tokens per step without those of validation and run-ahead."""
    kinds = ("validation", "run_ahead")
    tokens, row_steps = (
        sums[name] - sum(sums.get(f"{name}_{kind}", 0) for kind in kinds) for name in ("tokens", "row_steps")
    )
    return ratio(tokens, row_steps)


def seconds_saved(now: Sums, then: Sums) -> float | None:
    """Estimate the generation seconds that drafts saved one replica; negative where they cost time.

    By `priced_steps`, at the mean shape of all steps and the step-cost model that the engine drafts by. None where it
    has no such model (yet).
    """
    if any(name not in now for name in COST):
        return None
    steps, rows, tokens, drafted = (now[k] - then.get(k, 0) for k in ("steps", "row_steps", "tokens", "drafted"))
    if steps <= 0 or rows <= 0:
        return 0.0
    cost = CostModel(**{name.removeprefix("cost_"): now[name] for name in COST})
    used, plain = priced_steps(cost, steps=steps, row_steps=rows, tokens=tokens, drafted=drafted)
    return float(plain - used)


def split(numbers: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the sums and the rest of a step's numbers, without the prefix of the log."""
    plain = {name.removeprefix("rolltree/"): value for name, value in numbers.items()}
    sums = {name: value for name, value in plain.items() if name not in NOT_SUMS}
    return sums, {name: plain[name] for name in plain.keys() - sums.keys()}
