"""A run's metrics as rows to draw. Whatever a line holds, no exception comes of it: it counts, or is counted out.

A run that was killed leaves half a line, a logger a NaN or a null, a broken disk anything. Lines that are no metrics
and values that are no finite numbers are left out and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolltree import runlog
from rolltree.errors import InvalidInputError
from rolltree.metrics import add_up, ratios_of

LARGEST = 1e100
"""Values beyond it are no measurements, and sums of them no numbers."""
_DEEP = 8  # levels of run.json that are shown


@dataclass(slots=True)
class Recorded:
    """What a run folder holds."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    """A row a step, ascending: `{step, attempt, sums, ratios, gauges}`, of the latest attempt that reached the step."""
    skipped_lines: int = 0
    """Lines that are no metrics: torn, or something else."""
    skipped_values: int = 0
    """Values that are no finite numbers."""


def read_rows(folder: Path, mode: str = "train") -> Recorded:
    """Read `folder/metrics.jsonl`.

    Raises:
        InvalidInputError: there is no such file.
        OSError: it cannot be read.

    """
    path = folder / runlog.FILE
    if not path.is_file():
        fix = "Name the folder that was given to RunLog, or to RolloutFunction(run_dir=…)."
        raise InvalidInputError("run_dir", str(folder), f"a folder that holds {runlog.FILE}", fix)
    found, by_step = Recorded(), dict[int, dict[str, Any]]()
    for line in _lines(path, found):
        if line["mode"] != mode:
            continue
        row = by_step.get(line["step"])
        if row is None or row["attempt"] < line["attempt"]:
            row = by_step[line["step"]] = line | {"sums": {}, "gauges": {}}
        row["sums"] = add_up(row["sums"], line["sums"])
        row["gauges"] |= line["gauges"]
    found.steps = [row | {"ratios": ratios_of(row["sums"])} for _, row in sorted(by_step.items())]
    return found


def _lines(path: Path, found: Recorded) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for text in lines:
            line = _line(text, found) if text.strip() else None
            if line is not None:
                yield line
            elif text.strip():
                found.skipped_lines += 1


def _line(text: bytes, found: Recorded) -> dict[str, Any] | None:
    """One line; None for what is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    step, attempt = _whole(line.get("step")), _whole(line.get("attempt"))
    sums, gauges = line.get("sums"), line.get("gauges")
    if step is None or attempt is None or not isinstance(sums, dict) or not isinstance(gauges, dict):
        return None
    return {
        "step": step, "attempt": attempt, "mode": line.get("mode"), "sums": _numbers(sums, found),
        "gauges": _numbers(gauges, found),
    }  # fmt: skip


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53 else None


def _numbers(values: dict[str, Any], found: Recorded) -> dict[str, float]:
    kept = {name: value for name, value in values.items() if _is_number(value)}
    found.skipped_values += len(values) - len(kept)
    return kept


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value) and abs(value) <= LARGEST


def read_about(folder: Path) -> list[tuple[str, str]]:
    """What run.json says, flat; empty where there is none, or something else."""
    try:
        document = json.loads((folder / runlog.ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    parts = [document.get(name) for name in ("about", "machine")] if isinstance(document, dict) else []
    return [pair for part in parts if isinstance(part, dict) for pair in _flat(part)]


def _flat(values: dict[str, Any], prefix: str = "", level: int = 0) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        inside = isinstance(value, dict) and level < _DEEP
        found += _flat(value, f"{prefix}{name} ", level + 1) if inside else [(prefix + name, f"{value!s:.400}")]
    return found
