"""Fills a cache with rollouts from a file: a store, or recorded rollouts as JSON lines (the trace format)."""

from __future__ import annotations

from pathlib import Path

from rolltree.cache import RolloutCache
from rolltree.errors import InvalidInputError

TRACES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def load_rollouts(cache: RolloutCache, path: str | Path) -> int:
    """Load every rollout of the file, oldest first; return how many. The version of the newest is the policy's.

    Raises:
        InvalidInputError: there is no such file, or it is neither; nothing was loaded.

    """
    path = existing(path)
    if path.name.endswith(TRACES):
        return _load_traces(cache, path)
    from rolltree.store import RolloutStore  # SQLite, for those alone who have a store

    with RolloutStore(path) as store:
        return store.load_into(cache)


def _load_traces(cache: RolloutCache, path: Path) -> int:
    from rolltree.traces import read_rollouts

    rollouts = list(read_rollouts(path))  # the whole file, before the cache has any of it
    cache.set_version(max([cache.version, *(rollout.version for rollout in rollouts)]))
    for rollout in rollouts:
        cache.restore(rollout)
    return len(rollouts)


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there; raise InvalidInputError otherwise."""
    if not Path(path).exists():
        raise InvalidInputError("load", str(path), "a store or a .jsonl(.gz, .zst) file that exists")
    return Path(path)
