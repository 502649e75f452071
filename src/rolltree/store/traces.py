"""Stores to and from the trace format: JSON lines, one rollout each, gzipped when the name ends in .gz.

What goes out comes back: keys, versions, samples, rewards, log-probabilities bit by bit, tool output, order.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.store.lines import check_target, read_lines, writing
from rolltree.store.location import as_path
from rolltree.store.record import StoredRollout
from rolltree.store.store import RolloutStore
from rolltree.tokens import prompt_digest

Progress = Callable[[int], None]
_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}  # JSON has no word for them
_NUMBERS = {name: number for number, name in _NAMES.items()}
_SHOWN = 60  # characters of a bad line that a message repeats


def import_traces(
    store: RolloutStore, path: str | PathLike[str], progress: Progress = lambda rollouts: None, *,
    bad_line: Callable[[InvalidInputError], None] | None = None,
) -> int:  # fmt: skip
    """Add every rollout of a trace file, in its order; returns how many.

    `step` is the version; a line's `key` is the rollout's, and where there is none, the prompt is its own.

    Args:
        store: where to.
        path: JSON lines, plain or gzipped.
        progress: told how many so far.
        bad_line: told of each line that is no rollout, which is then left out; None: the first one is an error.

    Raises:
        InvalidInputError: a line is not a rollout; the message names it. The lines before it were added. Or the file
            cannot be read, or ends in the midst.
        StoreError: the store cannot be written.

    """
    count = 0
    for number, line in read_lines(as_path(path, "FILE")):
        try:
            rollout = rollout_of_line(line, f"{path}, line {number}")
        except InvalidInputError as error:
            if bad_line is None:
                raise
            bad_line(error)
            continue
        store.put(rollout)
        count += 1
        if count % 4096 == 0:  # a bound on what waits in memory
            store.flush()
            progress(count)
    store.flush()
    return count


def export_traces(
    rollouts: Iterable[StoredRollout], path: str | PathLike[str], progress: Progress = lambda rollouts: None, *,
    overwrite: bool = False,
) -> int:  # fmt: skip
    """Write rollouts as a trace file; returns how many.

    The file gets its name when it is whole; where that fails, nothing has changed. Where the sample is not known, the
    rollouts of a prompt and step are counted, and the line says so (`sample_counted`).

    Raises:
        InvalidInputError: no place for a file, the store itself, or a file that exists (without `overwrite`).
        StoreError: the store cannot be read, or the file cannot be written.

    """
    source = rollouts.path if isinstance(rollouts, RolloutStore) else None
    path = as_path(path, "FILE")
    target = check_target(path, source, overwrite)
    count, samples = 0, Counter[tuple[str, int]]()
    with writing(target, overwrite=overwrite, packed=path.suffix == ".gz") as lines:
        for count, rollout in enumerate(rollouts, 1):
            text = json.dumps(line_of(rollout, samples), separators=(",", ":"), allow_nan=False)
            lines.write(text.encode("ascii") + b"\n")
            if count % 4096 == 0:
                progress(count)
    return count


def line_of(rollout: StoredRollout, samples: Counter[tuple[str, int]]) -> dict[str, Any]:
    """What a line says; `samples` counts those of a prompt and step."""
    prompt_id = rollout.key if rollout.key is not None else prompt_digest(rollout.prompt_token_ids).hex()
    counted = rollout.sample is None
    line: dict[str, Any] = {
        "prompt_id": prompt_id,
        "step": rollout.version,
        "sample": samples[prompt_id, rollout.version] if counted else rollout.sample,
        "prompt_token_ids": rollout.prompt_token_ids.tolist(),
        "token_ids": rollout.token_ids.tolist(),
    }
    samples[prompt_id, rollout.version] += counted
    optional = {
        "key": rollout.key,
        "sample_counted": counted or None,
        "reward": None if rollout.reward is None else _number(rollout.reward),
        "logprobs": None if rollout.logprobs is None else [_number(_shortest(p)) for p in rollout.logprobs],
        "context": [list(span) for span in rollout.context] or None,
    }
    return line | {name: value for name, value in optional.items() if value is not None}


def rollout_of_line(text: bytes, where: str) -> StoredRollout:
    """The rollout that a line of JSON says; raise InvalidInputError, and nothing else, with the reason and `where`."""
    try:
        line = json.loads(text)
        if not isinstance(line, dict):
            raise TypeError(f"{type(line).__name__} in the place of an object")
        return StoredRollout.of(
            line["prompt_token_ids"], line["token_ids"], key=line.get("key"), version=line.get("step", 0),
            sample=None if line.get("sample_counted") is True else line.get("sample"),
            reward=_read(line.get("reward")), logprobs=_read_all(line.get("logprobs")),
            context=line.get("context") or (),
        )  # fmt: skip
    except Exception as error:  # no JSON, no UTF-8, nested too deeply, a field that is missing or wrong
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        shown = text[:_SHOWN].decode("utf-8", "replace").strip()
        fix = f"{why.rstrip('.')}. See the trace format in docs/store.md."
        raise InvalidInputError(where, shown, "a rollout", fix) from error


def _number(value: float) -> float | str | None:
    return None if math.isnan(value) else _NAMES.get(value, value)


def _shortest(value: np.float32) -> float:
    """The number with the fewest digits that reads back as `value`."""
    short = float(str(value))
    return short if np.float32(short) == value else float(value)


def _read(value: object) -> Any:
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _read_all(values: object) -> Any:
    return [_read(value) for value in values] if isinstance(values, list) else values
