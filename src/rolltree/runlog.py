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


def read(folder: str | PathLike[str], *, missing_ok: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run in the order in which they were written; torn ones are skipped.

    Raises:
        InvalidInputError: the folder holds no metrics (unless `missing_ok`).

    """
    path = Path(folder) / FILE
    if not path.exists():
        if missing_ok:
            return
        fix = "Name the folder that was given to RunLog, to RolloutFunction(run_dir=…), or to verl's option run_log."
        raise InvalidInputError("run_dir", str(folder), f"a folder that holds {FILE}", fix)
    with path.open(errors="replace") as lines:
        for text in lines:
            line = _parsed(text)
            if line is not None:
                yield line


def _parsed(text: str) -> dict[str, Any] | None:
    """A line with its numbers, those that are finite; None where it is torn or none of ours."""
    try:
        line = json.loads(text)
        whole = all(isinstance(line[name], int) for name in ("step", "attempt")) and isinstance(line["mode"], str)
        known = {name: _known(_finite(line[name])) for name in ("sums", "gauges")}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return line | known if whole else None


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
