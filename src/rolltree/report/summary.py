"""A run in numbers: totals, and how its first and last steps compare. Sums first, ratios last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolltree.metrics import add_up, ratios_of

PART = 0.2  # of the steps: what "first" and "last" mean


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals of all steps, of the first and of the last fifth: `{steps, all, first, last}`.

    The last three are `{sums, ratios, gauges}` each.
    """
    part = max(1, round(len(rows) * PART))
    return {"steps": len(rows), "all": _of(rows), "first": _of(rows[:part]), "last": _of(rows[-part:])}


def _of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sums = add_up(*(row["sums"] for row in rows))
    names = {name for row in rows for name in row["gauges"]}
    gauges = {name: _mean([row["gauges"][name] for row in rows if name in row["gauges"]]) for name in sorted(names)}
    return {"sums": sums, "ratios": ratios_of(sums), "gauges": gauges}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
