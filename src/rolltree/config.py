"""Settings of the cache and of drafting: frozen, keyword-only, checked when made.

Holds no behaviour. Each field's line below it is its documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolltree.errors import InvalidInputError
from rolltree.tokens import check_number, check_whole

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What is remembered, how long, and how much memory it may take."""

    capacity_bytes: int = 4 * GIB
    """Bytes of all trees; least recently used prompts without live sessions are evicted above it. Running rollouts are
    never cut off: what they add while all prompts are live comes on top."""
    window: int = 64
    """Finished rollouts kept for each prompt; the oldest leaves first."""
    shared_window: int = 2048
    """Finished rollouts of any prompt in the tree that all prompts share (about 55 bytes a token); 0 leaves it out."""
    shared_fraction: float = 0.125
    """Part of `capacity_bytes` that is the shared tree's alone: it forgets its oldest text to stay inside."""
    depth: int = 64
    """Longest indexed substring, tokens; drafts are predicted from at most depth - 1 tokens of context."""
    decay: float = 0.9
    """Weight of a rollout relative to one of the next policy version; 1 forgets nothing."""
    context_weight: float = 0.25
    """Weight of prompt and tool text relative to a fresh rollout, 1/64 to 1."""
    threads: int = 0
    """Threads that draft large batches, the drafts are the same with any; 0 takes half of the cores, at most 4."""

    def __post_init__(self) -> None:
        check_whole("cache.capacity_bytes", self.capacity_bytes, 1, 2**63 - 1)
        check_whole("cache.window", self.window, 0, 2**31 - 1)
        check_whole("cache.shared_window", self.shared_window, 0, 2**31 - 1)
        check_number("cache.shared_fraction", self.shared_fraction, 0.01, 0.9)
        check_whole("cache.depth", self.depth, 2, 4096)
        check_number("cache.decay", self.decay, 1e-6, 1)
        check_number("cache.context_weight", self.context_weight, 1 / 64, 1)
        check_whole("cache.threads", self.threads, 0, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftConfig:
    """How far and how boldly to draft."""

    max_draft: int = 16
    """Nodes a request drafts in one step at most."""
    shape: Literal["chain", "tree"] = "chain"
    """One line of tokens, or a best-first tree (engines with tree verification only)."""
    min_survival: float = 0.05
    """Nodes less likely than this to be reached and accepted are not drafted."""
    min_match: int = 1
    """Shortest matched context to predict from, tokens."""

    def __post_init__(self) -> None:
        check_whole("draft.max_draft", self.max_draft, 0, 1024)
        check_number("draft.min_survival", self.min_survival, 0, 1)
        check_whole("draft.min_match", self.min_match, 1, 4096)
        if self.shape not in ("chain", "tree"):
            raise InvalidInputError("draft.shape", self.shape, "'chain' or 'tree'")
