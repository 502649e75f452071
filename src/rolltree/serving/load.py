"""Fills a cache with rollouts: of a file, which is a store or JSON lines (the trace format), or from other engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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


def add_rollouts(cache: RolloutCache, given: Iterable[Mapping[str, Any]], *, vocab: int) -> int:
    """See `ServingCore.add`."""
    from rolltree.traces.format import rollout_of_fields

    rollouts = [rollout_of_fields(fields, f"rollouts[{place}]") for place, fields in enumerate(given)]
    for place, rollout in enumerate(rollouts):
        for name in ("prompt_token_ids", "token_ids"):
            tokens = getattr(rollout, name)
            if len(tokens) and int(tokens.max()) >= vocab:
                raise InvalidInputError(f"rollouts[{place}].{name}", int(tokens.max()), f"token ids below {vocab}")
    for rollout in rollouts:
        cache.restore(rollout, alone=False)
    return len(rollouts)


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there; raise InvalidInputError otherwise."""
    if not Path(path).exists():
        raise InvalidInputError("load", str(path), "a store or a .jsonl(.gz, .zst) file that exists")
    return Path(path)
