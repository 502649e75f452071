"""Arrays with an entry for each running request; which request has which entry is decided in `requests`."""

from __future__ import annotations

import numpy as np

from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import KINDS

NO_HANDLE = -1
COLUMNS = ("handle", "prompt", "known", "end", "draft", "wall", "kind")


class Table:
    """Growing columns, int64: session; lengths of the prompt, of the text that the tree knows, and at the end; tokens
    that may be drafted in a step; length that no draft may reach; number of the request's kind."""

    def __init__(self) -> None:
        self.requests: list[ServedRequest | None] = []
        self._free: list[int] = []
        zeros = np.zeros(0, np.int64)
        self.handle, self.prompt, self.known, self.end = (zeros.copy() for _ in range(4))
        self.draft, self.wall, self.kind = (zeros.copy() for _ in range(3))
        self._grow()

    def take(self) -> int:
        """Return an unused entry."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def _grow(self) -> None:
        """Double the room; there is always some, so that entry -1 of a row without a request may be looked up."""
        before, more = len(self.requests), max(64, len(self.requests))
        self._free = list(range(before + more - 1, before - 1, -1))
        self.requests += [None] * more
        for name in COLUMNS:
            setattr(self, name, np.concatenate((getattr(self, name), np.zeros(more, np.int64))))

    def set(self, entry: int, request: ServedRequest, *, prompt: int, end: int, draft: int) -> None:
        """Fill the entry of a request whose tree knows its prompt."""
        self.requests[entry] = request
        self.handle[entry], self.draft[entry] = NO_HANDLE, draft
        self.prompt[entry] = self.known[entry] = prompt
        self.wall[entry] = prompt + request.undrafted_at
        self.end[entry], self.kind[entry] = end, KINDS.index(request.options.kind)

    def free(self, entry: int) -> None:
        """Give an entry back."""
        self.requests[entry] = None
        self.handle[entry] = NO_HANDLE
        self._free.append(entry)
