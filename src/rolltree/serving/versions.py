"""Which version the policy has: what is said, else what a request's salt says, else the weight updates, counted.

An engine sees that weights may have changed (a host calls `updated`), often several times in one update. They count as
one, when generation begins after them, and not at all where nothing was generated since the last one. A better source
ends the worse ones for good, and goes on from where they were, so that versions only grow: its numbers may be smaller.

Invariant: a function of the calls alone, so ranks that get the same calls have the same version.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from rolltree.serving.counts import ServingCounts
from rolltree.serving.request import ServedRequest

LARGEST = 2**31 - 1


class Source(IntEnum):
    """Where versions come from, the best last."""

    UPDATES = 0
    SALTS = 1
    SAID = 2


class Versioned(Protocol):
    """What has a version that only grows: a cache."""

    @property
    def version(self) -> int:
        """The version as it is."""

    def set_version(self, version: int) -> None:
        """Make it a higher one."""


class Versions:
    """The versions of one cache.

    Args:
        cache: which has the version.
        counts: where what was inferred is counted.
        infer: False: only what is said counts.
        source: the best that there was before, in an earlier cache.

    """

    def __init__(
        self, cache: Versioned, counts: ServingCounts, *, infer: bool, source: Source = Source.UPDATES
    ) -> None:
        self.infer, self.source = infer, source
        self._cache, self._counts = cache, counts
        self._offset = 0
        self._has_text = self._has_changed = False

    def updated(self) -> None:
        """The weights may have changed."""
        self._has_changed |= self._has_text
        self._has_text = False

    def begin_step(self) -> None:
        """Tokens are about to be taken in: those of a new version, if weights changed behind the earlier ones."""
        if self._has_changed and self.infer and self.source == Source.UPDATES:
            self._set(self._cache.version + 1)
        self._has_changed, self._has_text = False, True

    def take(self, version: int, source: Source) -> int | None:
        """Return the version that a text gets of which `source` says `version`; None where a better source is known.

        One that is higher than all before announces an update.
        """
        if source < self.source or (source < Source.SAID and not self.infer):
            return None
        if source > self.source:
            self.source = source
            self._offset = max(0, self._cache.version - version) if self._counts.inferred_versions else 0
        version = min(version + self._offset, LARGEST)
        if version > self._cache.version:
            self._set(version)
        return version

    def of(self, request: ServedRequest) -> int | None:
        """Return the version that a request says, or its salt; None where it says none that counts."""
        if request.options.version is not None:
            return self.take(request.options.version, Source.SAID)
        return None if request.salt is None else self.take(request.salt, Source.SALTS)

    def _set(self, version: int) -> None:
        self._cache.set_version(version)
        self._counts.inferred_versions += self.source < Source.SAID
