"""A run's metrics as JSON lines in a folder: `rolltree report` makes a page of them, pandas reads them as they are.

Sums are written, and their ratios beside them; who adds lines up divides sums by sums. Nothing here knows a trainer.
A line is whole or absent: it is written at once, and a torn last line (a killed run) is skipped when read. Each process
that writes into a folder has a number, `attempt`; where attempts overlap (a training that went on from a checkpoint),
the latest counts. One process writes at a time; of a distributed training, the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from rolltree import machine
from rolltree.errors import InvalidInputError
from rolltree.metrics import ratio

FILE = "metrics.jsonl"
ABOUT = "run.json"
RATIOS = {
    "tokens_per_step": ("tokens", "row_steps"),
    "drafted_per_step": ("drafted", "row_steps"),
    "acceptance_rate": ("accepted", "drafted"),
    "tokens_per_second": ("tokens", "seconds"),
    "speedup": ("seconds_plain", "seconds"),
}
"""Ratio: (sum, sum); written where both sums are there."""


def ratios_of(sums: Mapping[str, float]) -> dict[str, float]:
    """The ratios that these sums allow."""
    return {name: ratio(sums[a], sums[b]) for name, (a, b) in RATIOS.items() if a in sums and b in sums}


class RunLog:
    """Appends to `FOLDER/metrics.jsonl`.

    Args:
        folder: of the run, made when missing.
        about: what a reader of the report wants to know: model, settings.

    """

    def __init__(self, folder: str | PathLike[str], about: Mapping[str, object] | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / FILE
        self.attempt = 1 + max((line["attempt"] for line in read(self.folder, missing_ok=True)), default=-1)
        document = {"about": dict(about or {}), "machine": machine.describe()}
        (self.folder / ABOUT).write_text(json.dumps(document, indent=1, default=str) + "\n")

    def write(
        self, step: int, sums: Mapping[str, float] | None = None, *, gauges: Mapping[str, float] | None = None,
        mode: str = "train",
    ) -> None:  # fmt: skip
        """Add a line; several of one step and mode are added up when read.

        Args:
            step: the trainer's step, or epoch, whose policy generated.
            sums: counters of this line alone: tokens, row_steps, drafted, accepted, seconds, ….
            gauges: values that are not added up: reward, tree_bytes, ….
            mode: "train" or "eval".

        """
        sums = sums or {}
        line = {
            "step": step, "mode": mode, "attempt": self.attempt, "unix_time": round(time.time(), 3),
            "sums": dict(sums), "ratios": ratios_of(sums), "gauges": dict(gauges or {}),
        }  # fmt: skip
        with self._path.open("ab") as file:
            if file.tell() and not _ends_in_newline(self._path):
                file.write(b"\n")  # after a line that a killed run left torn
            file.write(json.dumps(line).encode() + b"\n")


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


def read(folder: str | PathLike[str], *, missing_ok: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run in the order in which they were written; torn ones are skipped.

    Raises:
        InvalidInputError: the folder holds no metrics (unless `missing_ok`).

    """
    path = Path(folder) / FILE
    if not path.exists():
        if missing_ok:
            return
        fix = "Name the folder that was given to RunLog, or to RolloutFunction(run_log=…)."
        raise InvalidInputError("run_dir", str(folder), f"a folder that holds {FILE}", fix)
    with path.open(errors="replace") as lines:
        for text in lines:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and {"step", "mode", "attempt", "sums", "gauges"} <= line.keys():
                yield line


def steps(folder: str | PathLike[str], mode: str = "train") -> list[dict[str, Any]]:
    """One row a step, ascending: `{step, sums, ratios, gauges}`, of the latest attempt that reached the step."""
    rows: dict[int, dict[str, Any]] = {}
    for line in read(folder):
        if line["mode"] != mode:
            continue
        row = rows.get(line["step"])
        if row is None or row["attempt"] < line["attempt"]:
            row = rows[line["step"]] = {"step": line["step"], "attempt": line["attempt"], "sums": {}, "gauges": {}}
        row["sums"] = add_up(row["sums"], line["sums"])
        row["gauges"] |= line["gauges"]
    return [row | {"ratios": ratios_of(row["sums"])} for _, row in sorted(rows.items())]


def add_up(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Sums of both, name by name."""
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}
