"""What a replay needs of a drafter beyond the engine's protocol, and the drafter that never drafts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from rolltree.budget import CostModel
from rolltree.replay.records import Rollout
from rolltree.types import DraftBatch, Int32Array, Int64Array, TokenIds


class ReplayDrafter(ABC):
    """A `rolltree.types.Drafter` that is also told of history and of policy steps. Handles are never re-used."""

    cost: CostModel | None = None
    """Set before each step when the drafter has a budget (`budgeted`)."""
    budgeted = False
    """Weighs the cost of a step; others have all that they draft verified."""

    @abstractmethod
    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""

    @abstractmethod
    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""

    @abstractmethod
    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""

    @abstractmethod
    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""

    def take_in(self, handle: int, tokens: Int32Array) -> None:
        """Take in text that a request goes on with and did not generate (tool output)."""
        self.advance(np.array([handle], np.int64), tokens, np.array([0, len(tokens)], np.int32))

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """Take in finished rollouts of an earlier step."""
        return

    def begin(self, version: int) -> None:
        """A policy step begins; history counts as steps before."""
        return

    def end(self, rollouts: Sequence[Rollout]) -> None:
        """A policy step has ended; `rollouts` were generated in it."""
        return

    def reveal(self, truth: Int32Array) -> None:
        """Take in what comes next, int32 [B, K + 1], before `draft`: for the oracle alone."""
        return

    def memory(self) -> tuple[int, int]:
        """Bytes held now, and for how many indexed tokens; zeros when nothing is kept."""
        return 0, 0

    def moved(self) -> tuple[int, int]:
        """Prompts so far that left for want of memory, and that came back from a store."""
        return 0, 0

    def sources(self) -> dict[str, tuple[int, int]]:
        """Drafted and accepted tokens so far by source, where the drafter tells sources apart."""
        return {}


class NoDrafter(ReplayDrafter):
    """Plain decoding."""

    def __init__(self) -> None:
        self._opened = 0
        self._rows = 0

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        self._opened += 1
        return self._opened

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""
        if len(handles) != self._rows:
            self._rows = len(handles)
            self._empty = empty_batch(self._rows)
        return self._empty

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""

    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""


def empty_batch(rows: int) -> DraftBatch:
    """Return drafts of no tokens."""
    tokens = np.zeros((rows, 0), np.int32)
    return DraftBatch(
        tokens=tokens, parents=tokens, lengths=np.zeros(rows, np.int32),
        survival=np.zeros((rows, 0), np.float32), is_chain=True,
    )  # fmt: skip


def chains(drafts: Sequence[Sequence[int]], survival: Sequence[Sequence[float]] | None, width: int) -> DraftBatch:
    """Pack one chain a row, each at most `width` long; without `survival` every token claims certainty."""
    shape = (len(drafts), max(1, width))
    tokens, chance = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    lengths = np.fromiter(map(len, drafts), np.int32, len(drafts))
    for row, found in enumerate(drafts):
        tokens[row, : len(found)] = found
        if survival is not None:
            chance[row, : len(found)] = survival[row]
    parents = np.broadcast_to(np.arange(-1, shape[1] - 1, dtype=np.int32), shape)
    return DraftBatch(tokens=tokens, parents=parents, lengths=lengths, survival=chance, is_chain=True)
