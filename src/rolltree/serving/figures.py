"""What a serving engine says of itself: its line of the start, and its sums under flat names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from rolltree.cache import RolloutCache
from rolltree.metrics import values_of
from rolltree.serving.limits import EngineShape
from rolltree.serving.options import EngineOptions


def banner(engine: EngineShape, options: EngineOptions) -> str:
    """Return the line of the start: that drafting is on, from what, and how it is bounded."""
    given = options.logits_bytes
    size = f"{given / 2**20:.4g} MiB" if given else "half of the memory that is free when the engine is ready"
    return (
        f"rolltree {metadata.version('rolltree')} is ON: up to {engine.max_draft} draft tokens a request and "
        f"step, from earlier and running rollouts (window {options.window}, all prompts {options.shared_window}, "
        f"{options.capacity_bytes / 2**30:.3g} GiB), budget: {options.cost}, lengths: {options.lengths}, "
        "keyed by the whole prompt unless a request names its key. "
        f"A step's drafts are bounded by {engine.step_tokens} tokens a step and {size} "
        f"for logits, a request by {engine.max_length} tokens."
    )


def memory(cache: RolloutCache, *, held: bool = False) -> dict[str, float]:
    """Return what the trees, and the store for them, did since the cache was made; or what both hold now."""
    parts = {"cache": cache.stats(), "store": cache.store_stats()}
    return {f"{part}_{name}": n for part, stats in parts.items() for name, n in values_of(stats, held=held).items()}


def store(cache: RolloutCache, earlier: Mapping[str, float]) -> dict[str, float]:
    """Return what the store did, on top of `earlier`; costs no look at the trees."""
    sums = {f"store_{name}": value for name, value in values_of(cache.store_stats()).items()}
    return {name: value + earlier.get(name, 0) for name, value in sums.items()}
