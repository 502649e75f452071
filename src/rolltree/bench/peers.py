"""Drafters to compare with in the built-in engine: arctic-inference's suffix cache, and prompt lookup (n-gram).

Both draft chains and verify whatever they draft: neither weighs the cost of a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rolltree.tokens import as_tokens
from rolltree.types import DraftBatch, Int32Array, Int64Array, TokenIds


class _TextDrafter:
    """Keeps each request's text and turns per-request drafts into a batch."""

    width = 16

    def __init__(self) -> None:
        self._texts: dict[int, list[int]] = {}
        self._next = 0

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        self._next += 1
        self._texts[self._next] = as_tokens(prompt).tolist()
        return self._next

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""
        shape = (len(handles), self.width)
        tokens, lengths = np.zeros(shape, np.int32), np.zeros(len(handles), np.int32)
        for row, (handle, limit) in enumerate(zip(handles.tolist(), limits.tolist(), strict=True)):
            found = self.propose(handle, min(limit, self.width)) if limit > 0 else []
            lengths[row] = len(found)
            tokens[row, : len(found)] = found
        parents = np.tile(np.arange(-1, self.width - 1, dtype=np.int32), (len(handles), 1))
        survival = np.ones(shape, np.float32)
        return DraftBatch(tokens=tokens, parents=parents, lengths=lengths, survival=survival, is_chain=True)

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""
        for row, handle in enumerate(handles.tolist()):
            new = tokens[offsets[row] : offsets[row + 1]]
            self._texts[handle] += new.tolist()
            self.added(handle, np.ascontiguousarray(new))

    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""
        del self._texts[handle]

    def propose(self, handle: int, limit: int) -> list[int]:
        """Draft at most `limit` tokens."""
        raise NotImplementedError

    def added(self, handle: int, tokens: Int32Array) -> None:
        """Hear of new tokens."""


class NgramDrafter(_TextDrafter):
    """Copies what followed the latest earlier occurrence of the last n tokens, n = 4 down to 2 (prompt lookup)."""

    def propose(self, handle: int, limit: int) -> list[int]:
        """See _TextDrafter."""
        text = np.array(self._texts[handle], np.int32)
        for n in (4, 3, 2):
            if len(text) <= n:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], n)
            found = np.flatnonzero((windows == text[-n:]).all(axis=1))
            if len(found):
                start = int(found[-1]) + n
                return [int(t) for t in text[start : start + limit]]
        return []


class SuffixDrafter(_TextDrafter):
    """SuffixDecoding: arctic-inference 0.3 with vLLM's defaults (depth 24, factor 1, probability 0.1)."""

    DEPTH = 24

    def __init__(self) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        super().__init__()
        self._cache: Any = SuffixDecodingCache(max_tree_depth=self.DEPTH)

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        handle = super().open(prompt)
        self._cache.start_request(handle, as_tokens(prompt))
        return handle

    def propose(self, handle: int, limit: int) -> list[int]:
        """See _TextDrafter."""
        context = np.array(self._texts[handle][-self.DEPTH :], np.int32)
        draft = self._cache.speculate(handle, context, max_spec_tokens=limit, max_spec_factor=1.0, min_token_prob=0.1)
        return [int(t) for t in draft.token_ids[:limit]]

    def added(self, handle: int, tokens: Int32Array) -> None:
        """See _TextDrafter."""
        if len(tokens):
            self._cache.add_active_response(handle, tokens)

    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""
        super().close(handle)
        self._cache.stop_request(handle)
        if not keep:
            self._cache.evict_cached_response(handle)
