"""Which tokens end any running request, and where they stand in new text."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rolltree.types import Int32Array, Int64Array


class StopTokens:
    """Stop tokens of the running requests; one is looked for while a request has it."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        """Stop token -> running requests that it ends."""
        self.array: Int64Array = np.zeros(0, np.int64)

    def add(self, ids: frozenset[int]) -> None:
        """Count a request that starts."""
        self._change(ids, 1)

    def remove(self, ids: frozenset[int]) -> None:
        """Count a request that ended."""
        self._change(ids, -1)

    def places(self, text: Int32Array) -> Int64Array:
        """Return where in `text`, int32 [n], any of them stands; most requests have one or two."""
        if not len(self.array):
            return self.array
        if len(self.array) > 4:
            return np.flatnonzero(np.isin(text, self.array))
        found = text == self.array[0]
        for token in self.array[1:]:
            found |= text == token
        return np.flatnonzero(found)

    def _change(self, ids: frozenset[int], change: int) -> None:
        before = len(self.counts)
        for id in ids:
            self.counts[id] += change
            if not self.counts[id]:
                del self.counts[id]
        if len(self.counts) != before:
            self.array = np.fromiter(self.counts, np.int64, len(self.counts))
