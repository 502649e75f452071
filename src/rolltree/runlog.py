"""A run's metrics as JSON lines in a folder: `rolltree report` makes a page of them, pandas reads them as they are.

Sums are written, and their ratios beside them; who adds lines up divides sums by sums. Nothing here knows a trainer.
A line is whole or absent: it is written at once, and a torn last line (a killed run) is skipped when read. Each process
that writes into a folder has a number, `attempt`; where attempts overlap (a training that went on from a checkpoint),
the latest counts. One process writes at a time; of a distributed training, the first.

Metrics are a side channel: whatever goes wrong with them (a folder that is gone, a full disk, a value that is no
number) is skipped with one warning, and the training goes on. See `SideChannel`.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from rolltree import machine
from rolltree.errors import InvalidInputError
from rolltree.metrics import add_up, ratios_of

_log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
ABOUT = "run.json"
LARGEST = 1e100
"""Values beyond it are no measurements, and sums of them no numbers."""


class SideChannel:
    """Around what must never end the work that it accompanies: `with channel: ...`.

    An exception inside the block is skipped, and the first one logged as a warning. Interrupts pass.

    Args:
        what: the channel, as the warning names it.

    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.failures = 0
        """Blocks that were left by an exception."""

    def __enter__(self) -> SideChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failures += 1
        if self.failures == 1:
            self._tell(error)
        return True

    def _tell(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        _log.warning("Going on without %s: %s (said once; later failures are skipped in silence)", self.what, reason)


class RunLog:
    """Appends to `FOLDER/metrics.jsonl`.

    Args:
        folder: of the run, made when missing.
        about: what a reader of the report wants to know: model, settings.

    Raises:
        InvalidInputError: the folder cannot be made or written. Later, nothing raises.

    """

    def __init__(self, folder: str | PathLike[str], about: Mapping[str, object] | None = None) -> None:
        self.folder = Path(folder)
        self._path = self.folder / FILE
        self._channel = SideChannel(f"the metrics in {self.folder}")
        document = {"about": dict(about or {}), "machine": machine.describe()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.attempt = 1 + max((line["attempt"] for line in read(self.folder, missing_ok=True)), default=-1)
            (self.folder / ABOUT).write_text(json.dumps(document, indent=1, default=str) + "\n")
        except OSError as error:
            allowed = "a folder that can be made and written"
            raise InvalidInputError("run_dir", str(folder), allowed, f"The system says: {error}") from error

    def write(
        self, step: int, sums: Mapping[str, float] | None = None, *, gauges: Mapping[str, float] | None = None,
        mode: str = "train",
    ) -> None:  # fmt: skip
        """Add a line; several of one step and mode are added up when read. Never raises (see the module).

        Args:
            step: the trainer's step, or epoch, whose policy generated.
            sums: counters of this line alone: tokens, row_steps, drafted, accepted, seconds, ….
            gauges: values that are not added up: reward, tree_bytes, …. What is no finite number (None, NaN) is null in
                the file, and absent when read; in `sums` likewise.
            mode: "train" or "eval".

        """
        with self._channel:
            self._write(step, _finite(sums), _finite(gauges), mode)

    def _write(self, step: int, sums: dict[str, float | None], gauges: dict[str, float | None], mode: str) -> None:
        line = {
            "step": int(step), "mode": mode, "attempt": self.attempt, "unix_time": round(time.time(), 3),
            "sums": sums, "ratios": _finite(ratios_of(_known(sums))), "gauges": gauges,
        }  # fmt: skip
        text = json.dumps(line, allow_nan=False).encode()
        with self._path.open("ab") as file:
            if file.tell() and not _ends_in_newline(self._path):
                file.write(b"\n")  # after a line that a killed run, or a full disk, left torn
            file.write(text + b"\n")


def _finite(values: Mapping[str, object] | None) -> dict[str, float | None]:
    """The numbers as JSON can hold them: what is none, or not finite, is None."""
    return {str(name): _number(value) for name, value in (values or {}).items()}


def _number(value: object) -> float | None:
    try:
        number = int(value) if isinstance(value, numbers.Integral) else float(value)  # type: ignore[arg-type]
        return number if math.isfinite(number) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


@dataclass(slots=True)
class Skipped:
    """What a reader left out."""

    lines: int = 0
    """Lines that are no metrics: torn, or something else."""
    values: int = 0
    """Values that are no finite numbers."""


def read(
    folder: str | PathLike[str], *, missing_ok: bool = False, skipped: Skipped | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run in the order in which they were written.

    Whatever a line holds, no exception comes of it: it counts, or is counted out. A run that was killed leaves half a
    line, a logger a NaN or a null, a broken disk anything.

    Raises:
        InvalidInputError: the folder holds no metrics (unless `missing_ok`).
        OSError: the file cannot be read.

    """
    path = Path(folder) / FILE
    if not path.is_file():
        if missing_ok:
            return
        fix = "Name the folder given to RunLog, to RolloutFunction or attach (run_dir=…), or to verl's option run_log."
        raise InvalidInputError("run_dir", str(folder), f"a folder that holds {FILE}", fix)
    skipped = skipped or Skipped()
    with path.open("rb") as lines:
        for text in lines:
            line = _parsed(text, skipped) if text.strip() else None
            if line is not None and isinstance(line["mode"], str):
                yield line
            elif line is None and text.strip():
                skipped.lines += 1


def _parsed(text: bytes, skipped: Skipped) -> dict[str, Any] | None:
    """A line with its numbers; None where it is none of ours."""
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
        "step": step, "attempt": attempt, "mode": line.get("mode"), "sums": _numbers(sums, skipped),
        "gauges": _numbers(gauges, skipped),
    }  # fmt: skip


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53 else None


def _numbers(values: dict[str, Any], skipped: Skipped) -> dict[str, float]:
    kept = {name: value for name, value in values.items() if _is_number(value)}
    skipped.values += len(values) - len(kept)
    return kept


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST  # no NaN is


def steps(folder: str | PathLike[str], mode: str = "train", *, skipped: Skipped | None = None) -> list[dict[str, Any]]:
    """One row a step, ascending: `{step, attempt, sums, ratios, gauges}`, of the latest attempt that reached it.

    `skipped` takes the count of what was left out. Raises what `read` raises.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in read(folder, skipped=skipped):
        if line["mode"] != mode:
            continue
        row = rows.get(line["step"])
        if row is None or row["attempt"] < line["attempt"]:
            row = rows[line["step"]] = line | {"sums": {}, "gauges": {}}
        row["sums"] = add_up(row["sums"], line["sums"])
        row["gauges"] |= line["gauges"]
    return [row | {"ratios": ratios_of(row["sums"])} for _, row in sorted(rows.items())]
