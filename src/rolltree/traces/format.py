"""The trace format: what a line of JSON says of a rollout, and back.

What goes out comes back: keys, versions, samples, rewards, log-probabilities bit by bit, tool output, order.
"""

from __future__ import annotations

import math
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rolltree.errors import InvalidInputError, RolltreeError, StoreError
from rolltree.tokens import prompt_digest
from rolltree.traces.lines import GZIP, ZSTANDARD, Broken, decode, lines
from rolltree.traces.rollout import StoredRollout

_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}  # JSON has no word for them
_NUMBERS = {name: number for number, name in _NAMES.items()}
_SHOWN = 60  # characters of a bad line that a message repeats
SQLITE = b"SQLite format 3\0"
_KINDS = {
    GZIP: "gzip file", ZSTANDARD: "Zstandard file", b"PAR1": "Parquet file", b"PK\3\4": "zip file",
    b"{": "file of JSON lines", b"[": "JSON file",
}  # fmt: skip
BadLine = Callable[[InvalidInputError], None]


def read_rollouts(path: Path, bad_line: BadLine | None = None) -> Iterator[StoredRollout]:
    """Yield every rollout of a trace file, in its order.

    `step` is the version; a line's `key` is the rollout's, and where there is none, the prompt is its own.

    Args:
        path: JSON lines, plain or compressed.
        bad_line: called with each line that is no rollout, which is then left out; None: the first one is an error.

    Raises:
        InvalidInputError: a line is not a rollout; the message names it. Or there is no such file, it is of another
            kind, or it ends early or is damaged.
        StoreError: the system does not let us read it.

    """
    number = 0
    try:
        for number, line in lines(check_trace(path)):
            try:
                rollout = rollout_of_line(line, f"{path}, line {number}")
            except InvalidInputError as error:
                if bad_line is None:
                    raise
                bad_line(error)
            else:
                yield rollout
    except RolltreeError:
        raise
    except OSError as error:
        raise StoreError(f"{path}, after line {number}: {error.strerror or error}") from error
    except Exception as error:  # gzip and Zstandard have their own kinds
        kind = (path.is_file() and kind_of(first_bytes(path))) or "file"
        raise InvalidInputError("FILE", str(path), f"a whole {kind}", f"After line {number}: {error}.") from error


def check_trace(path: Path) -> Path:
    """`path`, which can be a trace file; errors as `read_rollouts`."""
    try:
        mode = path.stat().st_mode
        head = b"" if not stat.S_ISREG(mode) else first_bytes(path)  # of a pipe it cannot be looked at twice
    except OSError as error:
        fix = f"{error.strerror}."
        raise InvalidInputError("FILE", str(path), "a file that exists and can be read", fix) from error
    if stat.S_ISDIR(mode):
        raise InvalidInputError("FILE", str(path), "a file", "This is a folder.")
    if head == SQLITE:
        raise InvalidInputError("FILE", str(path), "recorded rollouts as JSON lines", "This is a store.")
    if (kind := kind_of(head)) and not head.startswith((b"{", b"[", GZIP, ZSTANDARD)):
        fix = f"This is a {kind}: unpack or convert it first."
        raise InvalidInputError("FILE", str(path), "recorded rollouts as JSON lines, plain or compressed", fix)
    return path


def first_bytes(path: Path) -> bytes:
    """The first 16 bytes of a file; OSError where it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(SQLITE))


def kind_of(head: bytes) -> str:
    """What a file that begins with `head` is; empty for a store, an empty file, and what is not known."""
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "")


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
        line = decode(text)
        if isinstance(line, Broken):
            raise ValueError(line.why)
        return _rollout_of(line)
    except Exception as error:  # no JSON, no UTF-8, nested too deeply, a field that is missing or wrong
        raise _no_rollout(where, text[:_SHOWN].decode("utf-8", "replace").strip(), error) from error


def rollout_of_fields(fields: object, where: str) -> StoredRollout:
    """The rollout that a dictionary says, in the fields of a line; errors as `rollout_of_line`."""
    try:
        return _rollout_of(fields)
    except Exception as error:
        raise _no_rollout(where, repr(fields)[:_SHOWN], error) from error


def _rollout_of(line: object) -> StoredRollout:
    if not isinstance(line, dict):
        raise TypeError(f"{type(line).__name__} in the place of an object")
    return StoredRollout.of(
        line["prompt_token_ids"], line["token_ids"], key=line.get("key"), version=line.get("step", 0),
        sample=None if line.get("sample_counted") is True else line.get("sample"),
        reward=_read(line.get("reward")), logprobs=_read_all(line.get("logprobs")),
        context=line.get("context") or (),
    )  # fmt: skip


def _no_rollout(where: str, shown: str, error: Exception) -> InvalidInputError:
    why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return InvalidInputError(where, shown, "a rollout", f"{why.rstrip('.')}. See the trace format in docs/store.md.")


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
