"""What the books of the vLLM integration keep: facts of a request, a slot for each that runs, first prompts.

Plain data; which request has which slot is decided in `requests`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rolltree.serving.request_options import DEFAULT, KINDS, RequestOptions

NO_HANDLE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a request when it starts."""

    prompt: Sequence[int] | None
    """Token ids; None for a prompt of embeddings, which no tree can hold."""
    options: RequestOptions = DEFAULT
    max_tokens: int | None = None
    """Tokens it may generate at most."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end it."""
    min_tokens: int = 0
    """Generated tokens before which none of `stop_ids` counts."""
    media: tuple[tuple[int, str], ...] = ()
    """Images and the like in the prompt: place of the first token that stands for each, and the hash of its content."""


class Slots:
    """Growing arrays with an entry for each running request."""

    def __init__(self) -> None:
        self.facts: list[Facts | None] = []
        self._free: list[int] = []
        zeros = np.zeros(0, np.int64)
        self.handle, self.prompt, self.known, self.end, self.draft, self.kind = (zeros.copy() for _ in range(6))
        self._grow()

    def take(self) -> int:
        """Return an unused slot."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def _grow(self) -> None:
        """Double the room; there is always some, so that slot -1 of a row without a request may be looked up."""
        before, more = len(self.facts), max(64, len(self.facts))
        self._free = list(range(before + more - 1, before - 1, -1))
        self.facts += [None] * more
        for name in ("handle", "prompt", "known", "end", "draft", "kind"):
            setattr(self, name, np.concatenate((getattr(self, name), np.zeros(more, np.int64))))

    def set(self, slot: int, facts: Facts, *, prompt: int, end: int) -> None:
        """Fill a slot of a request whose tree knows its prompt."""
        self.facts[slot] = facts
        self.handle[slot], self.draft[slot] = NO_HANDLE, 0
        self.prompt[slot] = self.known[slot] = prompt
        self.end[slot], self.kind[slot] = end, KINDS.index(facts.options.kind)

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self.facts[slot] = None
        self.handle[slot] = NO_HANDLE
        self._free.append(slot)
