"""An engine's side of sharing: between two steps it fetches what came, lets some of it enter, and hands over news.

All on the engine's thread, which never waits: text enters the trees at one place between steps, so that no lock of the
trees is held against drafting, and the host's order of calls stays the trees'. Invariant: `step` takes about as long as
indexing `STEP_TOKENS` tokens, at most.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import PurePath

from rolltree.cache import RolloutCache
from rolltree.sharing.child import ChildChannel
from rolltree.sharing.counts import SharingCounts
from rolltree.sharing.courier import Courier, Return, Trip
from rolltree.sharing.inbox import Inbox
from rolltree.sharing.message import Fingerprint
from rolltree.sharing.outbox import Outbox

STEP_TOKENS = 1536
"""Tokens of others that enter between two steps, about a microsecond each where they come in small pieces."""
TRIP_BYTES = 1 << 18
"""Of ours that one trip takes, so that handing them over stays quick."""


class Port:
    """Shares the rollouts of one engine.

    Args:
        courier: goes to the exchange.
        counts: where what is shared is counted.
        log: where lines for the user go.

    """

    def __init__(self, courier: Courier, counts: SharingCounts, log: logging.Logger) -> None:
        self.courier, self.counts, self._log = courier, counts, log
        self._outbox = Outbox(courier.sender, counts)
        self._inbox: Inbox | None = None
        self._exchange = ""

    def follow(self, cache: RolloutCache) -> None:
        """Share the rollouts of this cache from now on: the first one, or another in its place."""
        self._outbox.follow(cache)
        self._inbox = Inbox(cache, self.counts, self._log)

    @property
    def waiting(self) -> int:
        """Portions of others' text that wait to enter."""
        return 0 if self._inbox is None else len(self._inbox)

    def step(self) -> None:
        """Do what is to be done between two steps."""
        inbox = self._inbox
        assert inbox is not None, "call `follow` first"
        came = self.courier.fetch()
        if came is not None:
            self._take(inbox, came)
        inbox.enter(STEP_TOKENS)
        if not len(inbox) and (most := self.courier.allowance()):
            texts, dropped = self._outbox.collect(min(most, TRIP_BYTES))
            self.courier.send(Trip(texts=texts, dropped=dropped, wants=inbox.wants(), most=most))

    def _take(self, inbox: Inbox, came: Return) -> None:
        reply, counts = came.reply, self.counts
        counts.shared_bytes += came.bytes
        counts.shared_refused += len(came.refused) + came.is_refusal
        counts.shared_failures += reply is None and not came.is_refusal
        if reply is None:
            return
        if reply.exchange != self._exchange:
            is_first, self._exchange = not self._exchange, reply.exchange
            if not is_first:
                self._outbox.start_anew()
                inbox.start_anew()
        self._outbox.settle(came.trip.dropped)
        inbox.take(came.texts, reply.seen, reply.gone)
        for piece in came.refused:
            inbox.ignore(piece.stream, piece.name)


def open_port(
    share: str, *, model: str, vocab: int, seconds: float, bytes_a_second: int, counts: SharingCounts,
    log: logging.Logger,
) -> Port:  # fmt: skip
    """Return the port of an engine that shares by Ray.

    `share` is `ray:NAME`, or `ray`: with the engines of the same Ray job, which is one training, or outside of jobs
    with those of the cluster.
    """
    name = share.partition(":")[2] or f"rolltree-{os.environ.get('RAY_JOB_ID', 'cluster')}"
    channel, sender = ChildChannel(name), uuid.uuid4().hex[:16]
    fingerprint = Fingerprint(model=PurePath(model).name, vocab=vocab)
    courier = Courier(channel, fingerprint, sender, seconds=seconds, bytes_a_second=bytes_a_second, log=log)
    return Port(courier, counts, log)
