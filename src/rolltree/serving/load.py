"""Fills a cache with rollouts from a file: a store, or recorded rollouts as JSON lines (the trace format)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from rolltree.cache import RolloutCache
from rolltree.errors import InvalidInputError
from rolltree.serving.options import LOADABLE
from rolltree.store import RolloutStore
from rolltree.store.traces import import_traces

TRACES = (".jsonl", ".jsonl.gz")


def load_rollouts(cache: RolloutCache, path: str | Path) -> int:
    """Load every rollout of the file, oldest first; return how many.

    Raises:
        InvalidInputError: there is no such file, or it is neither.

    """
    path = Path(path)
    if not path.exists():
        raise InvalidInputError("load", str(path), LOADABLE)
    if not path.name.endswith(TRACES):
        with RolloutStore(path) as store:
            return store.load_into(cache)
    with TemporaryDirectory() as folder, RolloutStore(Path(folder) / "traces.store") as store:
        import_traces(store, path)
        return store.load_into(cache)
