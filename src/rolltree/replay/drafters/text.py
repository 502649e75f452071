"""Drafters that keep their own text: prompt lookup (n-gram), and the real arctic-inference suffix cache.

Both have all that they draft verified: neither weighs the cost of a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rolltree.errors import MissingDependencyError
from rolltree.replay.drafters.base import ReplayDrafter, chains
from rolltree.replay.records import Rollout
from rolltree.tokens import as_tokens
from rolltree.types import DraftBatch, Int32Array, Int64Array, TokenIds


class _Request:
    """The text of one request, and where each n-gram in it was last followed by something."""

    def __init__(self, prompt: Sequence[int], longest: int, shortest: int) -> None:
        self.text: list[int] = []
        self.lengths = range(longest, shortest - 1, -1)
        self.latest: dict[tuple[int, ...], int] = {}
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append; n-grams are indexed once a token follows them, so the last one only finds earlier ones."""
        text = self.text
        for token in tokens:
            end = len(text)
            text.append(token)
            for n in self.lengths:
                if end >= n:
                    self.latest[tuple(text[end - n : end])] = end

    def propose(self, limit: int) -> list[int]:
        """Copy what followed the latest earlier occurrence of the longest n-gram that ends the text."""
        for n in self.lengths:
            found = self.latest.get(tuple(self.text[-n:])) if len(self.text) >= n else None
            if found is not None:
                return self.text[found : found + limit]
        return []


class NgramDrafter(ReplayDrafter):
    """Prompt lookup over a request's prompt and its own answer, as in vLLM and transformers: n = 4 down to 2."""

    def __init__(self, *, max_draft: int, longest: int = 4, shortest: int = 2) -> None:
        self.max_draft, self.longest, self.shortest = max_draft, longest, shortest
        self._requests: dict[int, _Request] = {}
        self._opened = itertools.count(1)

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        handle = next(self._opened)
        self._requests[handle] = _Request(as_tokens(prompt).tolist(), self.longest, self.shortest)
        return handle

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""
        requests, pairs = self._requests, zip(handles.tolist(), limits.tolist(), strict=True)
        return chains([requests[h].propose(min(n, self.max_draft)) for h, n in pairs], None, self.max_draft)

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""
        new, cuts = tokens.tolist(), offsets.tolist()
        for handle, begin, end in zip(handles.tolist(), cuts, cuts[1:], strict=False):
            self._requests[handle].extend(new[begin:end])

    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""
        del self._requests[handle]


class SuffixDrafter(ReplayDrafter):
    """SuffixDecoding: arctic-inference's cache of all prompts and answers, with vLLM's defaults.

    Raises:
        MissingDependencyError: arctic-inference is not installed.

    """

    def __init__(
        self, *, max_draft: int, tree: bool, depth: int = 24, factor: float = 1.0, offset: float = 0.0,
        min_prob: float = 0.1, cached: int = 10_000,
    ) -> None:  # fmt: skip
        try:
            from arctic_inference.suffix_decoding import SuffixDecodingCache
        except ImportError as error:
            raise MissingDependencyError("drafter suffix needs arctic-inference: make bench-peer") from error
        self.max_draft, self.depth, self.is_chain = max_draft, depth, not tree
        self._cache: Any = SuffixDecodingCache(max_tree_depth=depth, max_cached_requests=cached)
        self._options: dict[str, Any] = {
            "max_spec_factor": factor, "max_spec_offset": offset, "min_token_prob": min_prob, "use_tree_spec": tree,
        }  # fmt: skip
        self._context: dict[int, Int32Array] = {}
        self._opened = itertools.count(1)
        self._tokens = 0

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        handle, tokens = next(self._opened), as_tokens(prompt)
        self._cache.start_request(handle, tokens)
        self._context[handle] = tokens[-self.depth :]
        return handle

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""
        speculate, context, options = self._cache.speculate, self._context, self._options
        found = [
            speculate(handle, context[handle], max_spec_tokens=min(limit, self.max_draft), **options)
            for handle, limit in zip(handles.tolist(), limits.tolist(), strict=True)
        ]
        batch = chains([d.token_ids for d in found], [d.probs for d in found], self.max_draft)
        if self.is_chain:
            return batch
        parents = batch.parents.copy()
        for row, drafted in enumerate(found):
            parents[row, : len(drafted.parents)] = drafted.parents
        return DraftBatch(
            tokens=batch.tokens, parents=parents, lengths=batch.lengths, survival=batch.survival, is_chain=False
        )

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""
        cuts, context, depth = offsets.tolist(), self._context, self.depth
        self._tokens += len(tokens)
        for handle, begin, end in zip(handles.tolist(), cuts, cuts[1:], strict=False):
            new = tokens[begin:end]
            self._cache.add_active_response(handle, new)
            context[handle] = np.concatenate((context[handle], new))[-depth:]

    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""
        self._cache.stop_request(handle)
        del self._context[handle]
        if not keep:
            self._cache.evict_cached_response(handle)

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """See ReplayDrafter."""
        for rollout in rollouts:
            self.add(rollout.prompt, rollout.tokens)

    def add(self, prompt: TokenIds, tokens: Int32Array) -> None:
        """Take in one finished rollout."""
        handle = self.open(prompt)
        self._cache.add_active_response(handle, tokens)
        self._tokens += len(tokens)
        self.close(handle)

    def memory(self) -> tuple[int, int]:
        """See ReplayDrafter; asked of the global tree, which walks every node, only when no request is live."""
        return (0, 0) if self._context else (int(self._cache._global_tree.estimate_memory()), self._tokens)
