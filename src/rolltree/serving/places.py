"""How many requests there were of each name, in bounded memory: the place of a request among its like.

Invariant: no place of a name in a version is handed out twice, whatever was forgotten meanwhile. As long as a version
has no more names than `capacity`, places in the newest one begin at 0 and do not depend on other names.
"""

from __future__ import annotations

from collections import OrderedDict

from rolltree.recent import MANY


class Places:
    """Counts of the `capacity` names that were used last, version by version."""

    def __init__(self, capacity: int = MANY) -> None:
        self._capacity = capacity
        self._next: OrderedDict[tuple[int, bytes], int] = OrderedDict()
        self._newest = 0
        self._floor = self._older_floor = 0  # behind all places that were forgotten: of the newest version, of others

    def take(self, version: int, name: bytes) -> int:
        """Return the next place of a name in a version, from 0 on; a name that was forgotten begins further on."""
        if version > self._newest:
            self._older_floor, self._floor = max(self._floor, self._older_floor), 0
            self._newest = version
        floor = self._floor if version == self._newest else self._older_floor
        place = self._next.pop((version, name), floor)
        self._next[version, name] = place + 1
        if len(self._next) > self._capacity:
            self._forget()
        return place

    def _forget(self) -> None:
        (version, _), count = self._next.popitem(last=False)
        if version == self._newest:
            self._floor = max(self._floor, count)
        else:
            self._older_floor = max(self._older_floor, count)
