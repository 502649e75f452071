"""The training step of a record, only from where it is known to stand.

Unasked: a field of the record with a known name; a file's name of a known form (`completions_00012.parquet` of TRL's
rows, `12.jsonl` of verl's lines, `…step_12….jsonl`); a folder `step_12` or `global_step_12`. Any other number (a task,
a rank, a date, a worker) is not taken. Where nothing or two different steps are found the record is refused, with the
option that decides: `--step-from FIELD|file|folder|order`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = (
    "step", "global_step", "global_steps", "training_step", "train_step", "trainer_step", "policy_step",
    "policy_version", "tail_version",
)  # fmt: skip
"""Names of fields that hold the training step, or the version of the policy that generated. AReaL: `tail_version`."""

OPTION = "--step-from FIELD, file, folder or order says where it stands"
_BOUND = 2**53  # beyond it JSON numbers are not exact
_WORD = r"(?:global|train|training|completions?|rollouts?|samples?|generations?|traces?|trajectories|dump|policy)[_-]"
_FILE = re.compile(rf"(?:{_WORD})*step[_-]?([0-9]{{1,9}})(?:[_-][a-z_-]*)?(?:(?:rank|part|shard|worker)[_-]?[0-9]+)?")
_TRL = re.compile(r"completions_([0-9]{5,9})")
_VERL = re.compile(r"([0-9]{1,7})")  # eight digits and more are a date or a time
_FOLDER = re.compile(r"(?:global_)?step[_-]?([0-9]{1,9})")


class UnknownStepError(ValueError):
    """The step of a record is not known; the message says why and names the option."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where a record was read."""

    path: Path
    order: int = 0
    """Of the file among those read."""


@dataclass(frozen=True, slots=True)
class StepSource:
    """Finds steps; `wanted` is the value of `--step-from`, None to look at all known places."""

    wanted: str | None = None

    def find(self, record: Mapping[str, Any], where: Where, kind: str) -> tuple[int, str]:
        """Return the step of a record of format `kind`, and in words where it stood.

        Raises:
            UnknownStepError: it is nowhere, or at two places that differ.

        """
        if self.wanted is None:
            return _known(record, where, kind)
        if self.wanted == "order":
            return where.order, "order of the files"
        if self.wanted == "file":
            return _only(where.path.name, _named(where.path, kind)), "name of the file"
        if self.wanted == "folder":
            folder = where.path.absolute().parent
            near = next((step for step in _folders(where.path)), None)
            return _only(folder.name, near), "name of the folder"
        return _field(record, self.wanted), f"field {self.wanted}"


def _known(record: Mapping[str, Any], where: Where, kind: str) -> tuple[int, str]:
    in_record = [(whole(record[name], name), f"field {name}") for name in FIELDS if record.get(name) is not None]
    if in_record:
        return _agreed(in_record)
    around = [(step, "name of the folder") for step in _folders(where.path)]
    named = _named(where.path, kind)
    if named is not None:
        around.insert(0, (named, "name of the file"))
    if not around:
        names = ", ".join(FIELDS)
        raise UnknownStepError(f"'step' is missing: none of {names}, nor a name of the file or folder. {OPTION}")
    return _agreed(around)


def _agreed(found: list[tuple[int, str]]) -> tuple[int, str]:
    if len({step for step, _ in found}) > 1:
        places = ", ".join(f"{step} by {place}" for step, place in found)
        raise UnknownStepError(f"more than one step: {places}. {OPTION}")
    return found[0]


def _field(record: Mapping[str, Any], name: str) -> int:
    """The field of that name, or the one that a dotted name leads to."""
    value: Any = record
    for part in [name] if name in record else name.split("."):
        if not isinstance(value, Mapping) or value.get(part) is None:
            raise UnknownStepError(f"no field {name!r}. {OPTION}")
        value = value[part]
    return whole(value, name)


def whole(value: Any, name: str) -> int:
    """Return a whole number out of JSON.

    Raises:
        UnknownStepError: a fraction, NaN, a truth value, text that is no number, or beyond 2^53.

    """
    is_text = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value)
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    number = int(value) if is_text or is_whole else value
    if isinstance(number, bool) or not isinstance(number, int) or abs(number) > _BOUND:
        raise UnknownStepError(f"{name} is {_short(value)}, not a whole number up to 2^53")
    return number


def _short(value: Any) -> str:
    if isinstance(value, str | int | float | bool):
        text = repr(value) if not isinstance(value, int) or abs(value) <= _BOUND else "a huge number"
        return text if len(text) < 40 else text[:36] + "…"
    return "null" if value is None else f"a {type(value).__name__}"


def stem(path: Path) -> str:
    """The file's name without `.jsonl`, `.jsonl.gz`, …"""
    return re.sub(r"\.(jsonl?|ndjson|parquet)?(\.(gz|zst))?$", "", path.name)


def _named(path: Path, kind: str) -> int | None:
    """The step in a file's name of a known form."""
    name = stem(path)
    forms = [_FILE, *([_TRL] if path.suffix == ".parquet" else []), *([_VERL] if kind == "verl" else [])]
    found = (form.fullmatch(name) for form in forms)
    return next((int(match[1]) for match in found if match), None)


def _folders(path: Path) -> Iterator[int]:
    """The steps in the names of the folders around, the nearest first."""
    for folder in path.absolute().parents:
        match = _FOLDER.fullmatch(folder.name)
        if match:
            yield int(match[1])


def _only(name: str, known: int | None) -> int:
    if known is not None:
        return known
    numbers = re.findall(r"[0-9]+", name)
    if len(numbers) != 1 or len(numbers[0]) > 15:
        raise UnknownStepError(f"{name!r} has {len(numbers)} numbers, not one. {OPTION}")
    return int(numbers[0])
