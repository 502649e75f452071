"""The proposer's sums and ratios: never smaller than before, though `clear` makes the drafter and its cache anew.

Plain data in and out. Sums first, ratios last, so that the figures of several workers can be added up.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rolltree.metrics import ratio

CACHE_SUMS = ("hits", "opened", "evicted_prompts", "rebuilt_prompts")
"""What of the cache's figures only grows; the others say what is held now."""
RATIOS = {
    "tokens_per_step": ("tokens", "row_steps"),
    "drafted_per_step": ("drafted", "row_steps"),
    "acceptance_rate": ("accepted", "drafted"),
}
"""Each ratio with the sums that it divides."""


def with_ratios(sums: dict[str, float]) -> dict[str, float]:
    """Return the figures with their ratios taken from the sums."""
    return sums | {name: ratio(sums[part], sums[whole]) for name, (part, whole) in RATIOS.items()}


class Figures:
    """Figures of a drafter and a request book, and of those that were there before."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def take_over(self, drafter: Any, book: Any) -> None:
        """Keep the sums of a drafter and a book that are about to be replaced."""
        self._before = self._sums(drafter, book)

    def stats(self, drafter: Any, book: Any) -> dict[str, float]:
        """Return sums since the start, what the cache holds now, and ratios, under flat names."""
        held = drafter.cache.stats()
        now = {f"cache_{f.name}": getattr(held, f.name) for f in fields(held) if f.name not in CACHE_SUMS}
        return with_ratios(self._sums(drafter, book) | now)

    def cheap(self, drafter: Any, book: Any) -> dict[str, float]:
        """Return those figures that cost no look at the trees, for every step."""
        stats, kinds, cache = drafter.stats, book.tokens_by_kind, drafter.cache
        sums = {name: getattr(stats, name) for name in ("steps", "row_steps", "tokens", "drafted", "accepted")}
        sums |= {"tokens_validation": kinds["validation"], "tokens_run_ahead": kinds["run-ahead"]}
        held = {"cache_prompts": cache.prompts, "cache_bytes": cache.bytes, "sessions": len(book)}
        return {name: self.total(name, value) for name, value in sums.items()} | held

    def total(self, name: str, now: float) -> float:
        """Return one sum since the start, of which `now` is the present drafter's part."""
        return self._before.get(name, 0) + now

    def _sums(self, drafter: Any, book: Any) -> dict[str, float]:
        sums: dict[str, float] = {k: v for k, v in drafter.snapshot().snapshot().items() if k not in RATIOS}
        for kind, tokens in book.tokens_by_kind.items():
            sums[f"tokens_{kind.replace('-', '_')}"] = tokens
            sums[f"row_steps_{kind.replace('-', '_')}"] = book.row_steps_by_kind[kind]
        held = drafter.cache.stats()
        sums |= {f"cache_{name}": getattr(held, name) for name in CACHE_SUMS}
        return {name: self.total(name, value) for name, value in sums.items()}
