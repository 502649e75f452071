"""What all ranks of a forward pass must have of a step's drafts, in one array that the first one sends."""

from __future__ import annotations

import numpy as np

from rolltree.types import Float32Array, Int32Array


class StepDrafts:
    """Drafts of the rows of one step.

    Args:
        rows: requests of the step.
        width: draft tokens of a request at most.
        confidences: whether a chance goes with each token, for vLLM's adaptive verification.

    """

    def __init__(self, rows: int, width: int, *, confidences: bool = False) -> None:
        self._width = width
        self.array: Int32Array = np.zeros((rows + 1, 1 + (2 if confidences else 1) * width), np.int32)
        """Shape [rows + 1, 1 + K, or 1 + 2 K with chances]: number of drafts, drafts, bits of their chances; the last
        row holds the one length of all rows."""

    @property
    def counts(self) -> Int32Array:
        """Shape [rows]: draft tokens of each row."""
        return self.array[:-1, 0]

    @property
    def tokens(self) -> Int32Array:
        """Shape [rows, K]: the drafts, 0 behind them."""
        return self.array[:-1, 1 : 1 + self._width]

    @property
    def confidences(self) -> Float32Array:
        """Shape [rows, K]: chance that each token is accepted if those before it are, 0 behind the draft."""
        return self.array.view(np.float32)[:-1, 1 + self._width :]

    @property
    def length(self) -> int:
        """Draft tokens that every row verifies, fillers included; see `draft_lengths`."""
        return int(self.array[-1, 0])

    @length.setter
    def length(self, length: int) -> None:
        self.array[-1, 0] = length
