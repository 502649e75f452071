"""How many drafts one step of the engine can take, whatever they bring: pure arithmetic on numbers of the host.

Two limits besides time, which `rolltree.budget` knows. Memory: every verified position has a row of logits, in several
copies, more than an engine sets aside that counts on few draft tokens. The scheduler's token budget: it serves running
requests in order, so drafts of the first ones would push the last ones out of the step.

Invariants: the same numbers give the same cut; a cut never lengthens a draft; without drafts nothing is limited.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rolltree.types import Float32Array, Int32Array

BYTES_PER_LOGIT = 24
"""Of one verified position and word in a sampler: logits in float32, the copy that is processed, probabilities (4 bytes
each), and for top-k and top-p the sorted logits and their places (4 and 8)."""
FREE_SHARE = 0.5
"""Of the free memory: activations, graphs and other processes want some of it, too."""
PROFILED_POSITIONS = 2
"""Verified positions a request whose memory engines set aside themselves: one token and one draft in
vLLM's profile run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """What must be known of an engine before it runs."""

    max_draft: int
    """Draft tokens of a request and step at most."""
    vocab: int
    """Words of the model's vocabulary."""
    max_length: int
    """Tokens of prompt and output that a request may reach."""
    max_requests: int
    """Requests that may run at once."""
    step_tokens: int
    """Tokens that the scheduler puts into one step."""
    model: str = ""
    """Its name, which a store remembers; engines of another one are not shared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """What one step of an engine holds."""

    requests: int
    """Requests that may run at once."""
    positions: int
    """Positions whose logits fit into memory."""
    tokens: int
    """Tokens that the scheduler puts into one step."""

    @classmethod
    def of(cls, *, requests: int, tokens: int, vocab: int, logits_bytes: int = 0, free_bytes: int = 0) -> StepLimits:
        """Derive the limits of an engine.

        Args:
            requests: it may run at once.
            tokens: it schedules in one step.
            vocab: words of its vocabulary.
            logits_bytes: what the user allows; 0 derives it from `free_bytes`.
            free_bytes: free when the engine was ready, 0 where that is not known.

        """
        own = vocab * BYTES_PER_LOGIT
        derived = max(PROFILED_POSITIONS * requests, int(free_bytes * FREE_SHARE) // own)
        return cls(requests=requests, tokens=tokens, positions=logits_bytes // own if logits_bytes else derived)

    def drafts(self, running: int, reading: int) -> int:
        """Return how many draft tokens the next step can take.

        Args:
            running: requests that have begun, each of which gets one token at least.
            reading: tokens of their prompts that are not read yet; they go first.

        """
        return max(0, min(self.positions - self.requests, self.tokens - running - reading))

    def __str__(self) -> str:
        return f"logits of {self.positions} positions for {self.requests} requests, {self.tokens} tokens a step"


def shorten(survival: Float32Array, lengths: Int32Array, total: int) -> Int32Array:
    """Cut drafts to `total` tokens together, the likeliest ones; of equal ones the earlier place, then the earlier row.

    Args:
        survival: float32 [B, K], falling along each row; entries past `lengths` are ignored.
        lengths: int32 [B].
        total: tokens of all drafts that may stay, 0 or more.

    Returns:
        int32 [B], at most `lengths`, `total` together or all of them.

    """
    if int(lengths.sum()) <= total:
        return lengths
    places = np.arange(survival.shape[1])
    rows, columns = np.nonzero(places[None, :] < lengths[:, None])
    falling = np.minimum.accumulate(survival, axis=1)[rows, columns]  # so that no row keeps a gap
    best = np.lexsort((rows, columns, -falling))[:total]
    return np.bincount(rows[best], minlength=len(lengths)).astype(np.int32)


def known_only(tokens: Int32Array, lengths: Int32Array, vocab: int) -> Int32Array:
    """Cut drafts before the first token that a vocabulary of `vocab` words does not have: it would end the engine.

    Args:
        tokens: int32 [B, K]; entries past `lengths` are ignored.
        lengths: int32 [B].
        vocab: words that the model knows.

    Returns:
        int32 [B], at most `lengths`.

    """
    tokens = tokens[:, : int(lengths.max(initial=0))]
    if not tokens.size or (tokens.max() < vocab and tokens.min() >= 0):
        return lengths
    good = (tokens >= 0) & (tokens < vocab)
    before: Int32Array = np.logical_and.accumulate(good, axis=1).sum(axis=1, dtype=np.int32)
    return np.minimum(lengths, before)
