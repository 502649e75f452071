"""What a host hands over of a step, and what the drafter is given of it: plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rolltree.types import Int32Array, Int64Array


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine step after sampling. Row i of all fields is the same request."""

    ids: list[str]
    sampled: Sequence[Sequence[int]]
    """Tokens sampled in this step; empty while the prompt is being read."""
    lengths: npt.NDArray[np.integer]
    """Shape [rows or more]: tokens of prompt and output, those of this step included."""
    tokens: npt.NDArray[np.integer]
    """Shape [rows or more, longest sequence]: prompt and output, undefined past `lengths`."""
    where: Int64Array | None = None
    """Shape [rows]: the row of `tokens` that holds each request's text; None: its own row."""


@dataclass(frozen=True, slots=True)
class Work:
    """New text of the A rows that take part in a step."""

    rows: Int64Array
    """Shape [A]: their rows in the batch."""
    handles: Int64Array
    """Shape [A]: their sessions."""
    tokens: Int32Array
    """Shape [n]: new text of all of them."""
    offsets: Int32Array
    """Shape [A + 1]: row a's new text is `tokens[offsets[a]:offsets[a + 1]]`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What may be drafted, for the A of the given requests that have a session."""

    rows: Int64Array
    """Shape [A]: their places among those given."""
    handles: Int64Array
    """Shape [A]: their sessions."""
    limits: Int32Array
    """Shape [A]: tokens that may be drafted."""
