"""Counters that can be trusted: sums first, ratios last.

A mean of per-step ratios over-weights small steps; every ratio here is a quotient of two sums over the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SOURCES = ("prompt", "own", "sibling", "history", "shared", "run_ahead")
"""Whose text a draft was copied from (shared: only the tree of all prompts has it); the native core's order."""


def ratio(part: float, whole: float) -> float:
    """Return part / whole, and 0 for an empty whole."""
    return part / whole if whole else 0.0


@dataclass(slots=True, kw_only=True)
class DraftStats:
    """Sums over engine steps. A row step is one (request, engine step) pair."""

    steps: int = 0
    row_steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by_source: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    accepted_by_source: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))

    @property
    def tokens_per_step(self) -> float:
        """Tokens produced per (request, engine step) pair; 1.0 without speculation."""
        return ratio(self.tokens, self.row_steps)

    @property
    def acceptance_rate(self) -> float:
        """Share of the verified draft tokens that were accepted."""
        return ratio(self.accepted, self.drafted)

    def since(self, earlier: DraftStats) -> DraftStats:
        """Return what was added after `earlier`, a copy taken before."""
        minus = {s: self.drafted_by_source[s] - earlier.drafted_by_source[s] for s in SOURCES}
        hits = {s: self.accepted_by_source[s] - earlier.accepted_by_source[s] for s in SOURCES}
        return DraftStats(
            steps=self.steps - earlier.steps,
            row_steps=self.row_steps - earlier.row_steps,
            tokens=self.tokens - earlier.tokens,
            drafted=self.drafted - earlier.drafted,
            accepted=self.accepted - earlier.accepted,
            drafted_by_source=minus,
            accepted_by_source=hits,
        )

    def copy(self) -> DraftStats:
        """Return an independent copy, for `since`."""
        return self.since(DraftStats())

    def snapshot(self) -> dict[str, float]:
        """Return sums and their ratios under flat names, ready for a logger."""
        out: dict[str, float] = {
            "steps": self.steps,
            "row_steps": self.row_steps,
            "tokens": self.tokens,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "tokens_per_step": self.tokens_per_step,
            "drafted_per_step": ratio(self.drafted, self.row_steps),
            "acceptance_rate": self.acceptance_rate,
        }
        for source in SOURCES:
            out[f"drafted_{source}"] = self.drafted_by_source[source]
            out[f"accepted_{source}"] = self.accepted_by_source[source]
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache holds and what it did since it was made; sums only."""

    prompts: int
    sessions: int
    rollouts: int
    tokens: int
    bytes: int
    evicted_prompts: int
    hits: int
    """Sessions that found a tree with rollouts in it."""
    opened: int
    rebuilt_prompts: int = 0
    """Trees that were made again from the store."""
