"""The indexes that are compared, behind one small interface: ours, and arctic-inference's suffix cache when installed.

Both are driven as an engine would: history is loaded rollout by rollout, then all live requests advance in lock step,
drafting before each token. Only the calls under test are timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rolltree._native import Drafts, Forest
from rolltree.bench.workload import Group
from rolltree.config import CacheConfig
from rolltree.types import Int32Array

DEPTH = 64
MAX_DRAFT = 16
MIN_PROBABILITY = 0.1


class IndexSubject(Protocol):
    """One index under test. Times are seconds of the calls alone."""

    name: str

    def load(self, groups: Sequence[Group]) -> float:
        """Index every group's history, whole rollouts; returns seconds."""

    def bytes(self) -> int:
        """Bytes that the loaded history takes, as the index accounts for them."""

    def start(self, groups: Sequence[Group]) -> None:
        """Open a live request for every rollout to come."""

    def draft(self, live: Int32Array) -> float:
        """Match and draft up to 16 tokens for the requests `live` (indices); returns seconds."""

    def append(self, live: Int32Array, tokens: Int32Array) -> float:
        """Append one token to each live request; returns seconds."""

    def finish(self) -> None:
        """Close the live requests."""


class Ours:
    """rolltree's native forest, one tree a prompt."""

    name = "rolltree"
    shared_window = 0

    def __init__(self) -> None:
        self._forest = Forest(depth=DEPTH, window=2**20, shared_window=self.shared_window)
        self._trees: list[int] = []
        self._out = Drafts(1, MAX_DRAFT)

    def load(self, groups: Sequence[Group]) -> float:
        """See IndexSubject."""
        forest, seconds = self._forest, 0.0
        for group in groups:
            begin = time.perf_counter()
            tree = forest.add_tree(group.prompt)
            for rollout in group.history:
                session = forest.open(tree)
                forest.append(session, rollout)
                forest.close(session)
            seconds += time.perf_counter() - begin
            self._trees.append(tree)
        return seconds

    def bytes(self) -> int:
        """See IndexSubject."""
        return sum(self._forest.stats(tree)["bytes"] for tree in self._trees) + self._forest.shared_stats()["bytes"]

    def start(self, groups: Sequence[Group]) -> None:
        """See IndexSubject."""
        handles = [self._forest.open(t) for t, g in zip(self._trees, groups, strict=True) for _ in g.now]
        self._handles = np.array(handles, np.int64)
        self._out = Drafts(len(handles), MAX_DRAFT)
        self._live, self._chosen = np.zeros(0, np.int32), self._handles
        self._limits, self._offsets = np.zeros(0, np.int32), np.zeros(1, np.int32)

    def draft(self, live: Int32Array) -> float:
        """See IndexSubject."""
        if len(live) != len(self._live):  # an engine keeps these between steps, too
            self._live, self._chosen = live, np.ascontiguousarray(self._handles[live])
            self._limits = np.full(len(live), MAX_DRAFT, np.int32)
            self._offsets = np.arange(len(live) + 1, dtype=np.int32)
        if len(live) == 1:
            session = int(self._chosen[0])
            begin = time.perf_counter()
            self._forest.draft_one(session, MAX_DRAFT, MIN_PROBABILITY, 1, False, self._out)
            return time.perf_counter() - begin
        begin = time.perf_counter()
        self._forest.draft_batch(self._chosen, self._limits, MIN_PROBABILITY, 1, False, self._out)
        return time.perf_counter() - begin

    def append(self, live: Int32Array, tokens: Int32Array) -> float:
        """See IndexSubject."""
        if len(live) == 1:
            session, token = int(self._chosen[0]), int(tokens[0])
            begin = time.perf_counter()
            self._forest.append_token(session, token)
            return time.perf_counter() - begin
        begin = time.perf_counter()
        self._forest.append_batch(self._chosen, tokens, self._offsets)
        return time.perf_counter() - begin

    def finish(self) -> None:
        """See IndexSubject."""
        for handle in self._handles.tolist():
            self._forest.close(handle)


class OursShared(Ours):
    """The same with the tree that all prompts share, as the cache has it by default: every token is indexed twice."""

    name = "rolltree with the shared tree"
    shared_window = CacheConfig().shared_window


class Peer:
    """arctic-inference's SuffixDecodingCache: a global tree plus one tree a live request."""

    name = "arctic-inference"

    def __init__(self) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._cache: Any = SuffixDecodingCache(max_tree_depth=DEPTH)
        self._ids: list[Any] = []

    def load(self, groups: Sequence[Group]) -> float:
        """See IndexSubject."""
        cache, seconds = self._cache, 0.0
        for g, group in enumerate(groups):
            begin = time.perf_counter()
            for r, rollout in enumerate(group.history):
                cache.start_request((g, r), group.prompt)
                cache.add_active_response((g, r), rollout)
                cache.stop_request((g, r))
            seconds += time.perf_counter() - begin
        return seconds

    def bytes(self) -> int:
        """See IndexSubject."""
        return int(self._cache._global_tree.estimate_memory())

    def start(self, groups: Sequence[Group]) -> None:
        """See IndexSubject."""
        self._ids = [("live", g, r) for g, group in enumerate(groups) for r in range(len(group.now))]
        self._texts = [list(map(int, group.prompt)) for group in groups for _ in group.now]
        for id, text in zip(self._ids, self._texts, strict=True):
            self._cache.start_request(id, np.array(text, np.int32))

    def draft(self, live: Int32Array) -> float:
        """See IndexSubject."""
        contexts = [np.array(self._texts[i][-DEPTH:], np.int32) for i in live]
        ids, speculate = [self._ids[i] for i in live], self._cache.speculate
        options = {"max_spec_tokens": MAX_DRAFT, "max_spec_factor": 1.0, "min_token_prob": MIN_PROBABILITY}
        begin = time.perf_counter()
        for id, context in zip(ids, contexts, strict=True):
            speculate(id, context, **options)
        return time.perf_counter() - begin

    def append(self, live: Int32Array, tokens: Int32Array) -> float:
        """See IndexSubject."""
        ids, add = [self._ids[i] for i in live], self._cache.add_active_response
        for i, token in zip(live.tolist(), tokens.tolist(), strict=True):
            self._texts[i].append(token)
        pieces = [tokens[k : k + 1] for k in range(len(ids))]
        begin = time.perf_counter()
        for id, piece in zip(ids, pieces, strict=True):
            add(id, piece)
        return time.perf_counter() - begin

    def finish(self) -> None:
        """See IndexSubject."""
        for id in self._ids:
            self._cache.stop_request(id)


def peer_installed() -> bool:
    """True when arctic-inference can be imported."""
    try:
        Peer()
    except ImportError:
        return False
    return True
