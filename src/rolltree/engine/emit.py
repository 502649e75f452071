"""Cuts a step's outcome to what requests really get: stop tokens end a row, non-finite logits fail it. Numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rolltree.engine.running import Rows
from rolltree.engine.step import Outcome
from rolltree.types import Int32Array, Int64Array


@dataclass(frozen=True, slots=True)
class Emission:
    """Tokens of one step, E in all."""

    counts: Int64Array
    """Shape [B]: tokens of each row; 0 only for a failed row."""
    row: Int64Array
    """Shape [E]."""
    order: Int64Array
    """Shape [E]: index in the row's emission."""
    tokens: Int32Array
    """Shape [E]."""
    logprobs: npt.NDArray[np.float32]
    """Shape [E]."""
    stopped: npt.NDArray[np.bool_]
    """Shape [B]: the last token is one of the row's stop tokens."""
    failed: npt.NDArray[np.bool_]
    """Shape [B]: the logits after the last token were not finite."""


def emit(rows: Rows, outcome: Outcome) -> Emission:
    """Cut each row after its first stop token and before its first failed one."""
    counts, queries = outcome.counts, outcome.tokens.shape[1]
    column = np.arange(queries)
    emitted = column < counts[:, None]
    counts, failed = _cut(counts, emitted & np.isnan(outcome.logprobs), 0)
    hit = (outcome.tokens[:, :, None] == rows.stop[: rows.count, None, :]).any(axis=2)
    counts, stopped = _cut(counts, hit & (column < counts[:, None]), 1)
    kept = column < counts[:, None]
    row, order = np.nonzero(kept)
    tokens = outcome.tokens[kept].astype(np.int32)
    return Emission(counts, row, order, tokens, outcome.logprobs[kept], stopped, failed & ~stopped)


def commit(rows: Rows, emission: Emission) -> None:
    """Write what the rows emitted and advance their lengths."""
    n = len(emission.counts)
    column = rows.length[emission.row] + emission.order
    rows.tokens[emission.row, column] = emission.tokens
    rows.logprobs[emission.row, column] = emission.logprobs
    rows.length[:n] += emission.counts
    rows.steps[:n] += 1


def _cut(counts: Int64Array, event: npt.NDArray[np.bool_], keep: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """Counts cut at each row's first event, of which `keep` tokens stay, and which rows had one."""
    happened: npt.NDArray[np.bool_] = np.any(event, axis=1)
    if not happened.any():
        return counts, happened
    return np.where(happened, event.argmax(axis=1) + keep, counts), happened
