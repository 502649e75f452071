"""Which replica a prompt belongs to: where it was before, else consistent hashing; both within a bound on the load.

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv 1608.01350): a replica takes a new group
of samples only while its running requests stay below `bound` times the mean. So a prompt finds its tree again, few
prompts move when replicas come or go, and no replica has much more to do than the others.

Pure: no clock, no randomness. The same calls give the same places.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence

from rolltree.recent import Recent

POINTS = 64
"""Points of a replica on the ring: with 64 the arcs differ by about an eighth."""
PROMPTS = 1_000_000
"""Prompts whose replica is remembered; about 150 bytes each."""


class Placement:
    """Places groups of requests that share a prompt.

    Args:
        bound: how much more than the mean a replica may have running when it takes a group, 1 or more (infinity: none).
        slack: requests that a replica may have running whatever the mean is, so that a group of samples stays together.
    """

    def __init__(
        self, servers: Iterable[str] = (), *, bound: float = 1.25, slack: int = 0, prompts: int = PROMPTS
    ) -> None:
        self.bound, self.slack = bound, slack
        self.loads: dict[str, int] = {}
        """Running requests of each replica."""
        self._ring: list[tuple[int, str]] = []
        self._replicas: Recent[str] = Recent(prompts)  # prompt -> replica
        self._running: dict[str, int] = {}
        self.placed = self.stayed = 0
        """Groups placed, and those of them that found the replica of the time before."""
        for server in servers:
            self.add(server)

    def add(self, server: str) -> None:
        """Take in a replica."""
        if server in self.loads:
            return
        self.loads[server] = 0
        for point in range(POINTS):
            bisect.insort(self._ring, (_hash(f"{server}/{point}"), server))

    def remove(self, server: str) -> None:
        """Forget a replica; its prompts get another when they come again."""
        self.loads.pop(server, None)
        self._ring = [entry for entry in self._ring if entry[1] != server]

    def preview(self, keys: Sequence[str], requests: int) -> list[str]:
        """Return where a batch to come will be placed, `requests` for each key, in this order and with nothing else
        running; the prompts are placed there while the bound allows.

        Raises:
            LookupError: there are no replicas.
        """
        trial = Placement(self.loads, bound=self.bound, slack=self.slack)
        for key in keys:
            if key in self._replicas:
                trial._replicas[key] = self._replicas[key]
        for key in keys:
            for _ in range(requests):
                self._replicas[key] = trial.place(key)
        return [trial._replicas[key] for key in keys]

    def place(self, key: str) -> str:
        """Return the replica for one more request of this prompt; it counts as running from now on.

        Requests of a prompt that has some running follow these whatever the load is: their siblings' text is there.

        Raises:
            LookupError: there are no replicas.
        """
        replica = self._replicas.get(key)
        if not (replica in self.loads and self._running.get(key)):
            replica = self._choose(key, replica)
        assert replica is not None
        self._replicas[key] = replica
        self.start(replica, key)
        return replica

    def start(self, server: str, key: str) -> None:
        """Count one more running request of `key` on `server`."""
        self.loads[server] += 1
        self._running[key] = self._running.get(key, 0) + 1

    def finish(self, server: str, key: str | None) -> None:
        """Count one request less; the key of a request that is not known is None."""
        if self.loads.get(server, 0) > 0:
            self.loads[server] -= 1
        if key is not None and self._running.get(key, 0) > 0:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]

    def _choose(self, key: str, before: str | None) -> str:
        if not self.loads:
            raise LookupError("no replicas")
        cap = max(self.slack, self.bound * (sum(self.loads.values()) + 1) / len(self.loads))
        self.placed += before is not None
        if before in self.loads and self.loads[before] < cap:
            self.stayed += 1
            return before
        start = bisect.bisect(self._ring, (_hash(key), ""))
        walk = (self._ring[(start + step) % len(self._ring)][1] for step in range(len(self._ring)))
        # Some replica is below the cap, because the cap is at least the mean after one more request.
        return next(server for server in walk if self.loads[server] < cap)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
