"""Fills a cache from a store: which rollouts, in which order, as of which version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

from rolltree.store.pending import PendingRollout, unwritten
from rolltree.store.reader import Damaged, StoreReader
from rolltree.tokens import prompt_digest
from rolltree.traces.rollout import StoredRollout


class Restorable(Protocol):
    """What is filled: the rollout cache."""

    @property
    def version(self) -> int:
        """Policy version that generates now."""

    def set_version(self, version: int) -> None:
        """Announce a newer version."""

    def restore(self, rollout: StoredRollout) -> None:
        """Put a rollout into its prompt's tree, without committing it again."""


def load(
    reader: StoreReader, waiting: list[PendingRollout], cache: Restorable, window: int, max_tokens: int,
    version: int | None, damaged: Damaged,
) -> int:  # fmt: skip
    """See `RolloutStore.load_into`; `waiting` was asked for before anything is read."""
    newest = reader.count()[1]
    later_on = reversed(unwritten(waiting, newest))
    listed = chain[_Listed](
        ((one, len(one.token_ids), (one.key, prompt_digest(one.prompt_token_ids))) for one in later_on),
        ((id, n if isinstance(n, int) else 0, (key, digest)) for id, n, key, digest in reader.names(newest)),
    )
    chosen = list(_chosen(listed, window, max_tokens))[::-1]
    ids = [one for one in chosen if isinstance(one, int)]
    later = [one for one in chosen if isinstance(one, StoredRollout)]
    if version is None:
        version = max([reader.newest_version(), cache.version, *(rollout.version for rollout in later)])
    cache.set_version(version)
    loaded = 0
    for rollout in chain(reader.of_ids(ids, damaged), later):
        cache.restore(rollout)
        loaded += 1
    return loaded


_Listed = tuple[int | StoredRollout, int, object]
"""A row's id, or a rollout that waits; its tokens; what names its prompt."""


def _chosen(listed: Iterable[_Listed], window: int, max_tokens: int) -> Iterator[int | StoredRollout]:
    """The latest `window` of each prompt, without the oldest beyond `max_tokens`; latest first, as listed."""
    count, whole = Counter[object](), 0
    for one, tokens, name in listed:
        count[name] += 1
        if count[name] > window:
            continue
        whole += tokens
        if whole > max_tokens:
            return
        yield one
