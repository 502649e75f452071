"""Goes between an engine and the exchange, in a thread of its own: the engine hands over and fetches, and never waits.

One trip at a time, no oftener than the interval, within a mean rate of bytes. A trip that fails or hangs costs this
thread its time alone: it is tried again after 1, 2, 4, ... seconds. An exchange that is lost is said in one line, and
so is that it is back. Knows neither trees nor Ray.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rolltree.sharing.message import Fingerprint, Piece, Reply, Request, Text, Want, read, write

TIMEOUT_SECONDS = 10.0
"""A trip that takes longer has failed."""
LONGEST_REST = 30.0
"""Seconds between two tries at most."""
BURST_SECONDS = 2.0
"""Unused bytes of so many seconds may be used later."""


class Channel(Protocol):
    """The way to an exchange."""

    def trade(self, request: Request, timeout: float) -> Reply:
        """Return the exchange's answer; raise anything after `timeout` seconds, or when it cannot be reached."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """What an engine hands over."""

    texts: Sequence[Text]
    dropped: Sequence[tuple[str, str]]
    wants: Mapping[str, Want]
    most: int
    """Bytes for it and for the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What came of a trip."""

    trip: Trip
    reply: Reply | None
    """None: the exchange could not be reached, or refused the engine."""
    texts: Sequence[Text] = ()
    """What was readable of the answer's pieces."""
    refused: Sequence[Piece] = ()
    """What was not."""
    bytes: int = 0
    is_refusal: bool = False


class Courier:
    """Makes trips for one engine.

    Args:
        channel: the way to the exchange.
        fingerprint: what the engine's model is.
        sender: the engine's name, which no other ever has.
        seconds: between two trips, at least.
        bytes_a_second: there and back, in the mean.
        log: where lines for the user go.
        clock: seconds.

    """

    def __init__(
        self, channel: Channel, fingerprint: Fingerprint, sender: str, *, seconds: float, bytes_a_second: int,
        log: logging.Logger, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.channel, self.fingerprint, self.sender = channel, fingerprint, sender
        self.arrived = threading.Event()
        """Set while there is something to `fetch`."""
        self.trips = 0
        """Trips that are over."""
        self._seconds, self._rate, self._log, self._clock = seconds, bytes_a_second, log, clock
        self._trip: Trip | None = None
        self._return: Return | None = None
        self._left = self._rate * BURST_SECONDS
        self._next = self._earned = self._well = clock()
        self._failed, self._has_refused = 0, False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rolltree-sharing", daemon=True)
        self._thread.start()

    @property
    def age(self) -> float:
        """Seconds since the exchange answered last."""
        return self._clock() - self._well

    def allowance(self) -> int:
        """Return how many bytes the next trip may have; 0: none may begin now."""
        now = self._clock()
        if self._trip is not None or self._return is not None or now < self._next:
            return 0
        self._left = min(self._rate * BURST_SECONDS, self._left + (now - self._earned) * self._rate)
        self._earned = now
        return max(0, int(self._left))

    def send(self, trip: Trip) -> None:
        """Start a trip; only where there is an allowance."""
        self._trip = trip
        self._wake.set()

    def fetch(self) -> Return | None:
        """Return what came of the last trip, once."""
        if self._return is None:
            return None
        came, self._return = self._return, None
        self.arrived.clear()
        self._left -= came.bytes
        return came

    def close(self) -> None:
        """Make no more trips."""
        self._trip = None
        self._rate = -1
        self._wake.set()

    def _run(self) -> None:
        while self._wake.wait() and self._rate >= 0:
            self._wake.clear()
            trip = self._trip
            if trip is not None:
                came = self._travel(trip)
                self._next = self._clock() + self._rest()
                self._return, self._trip = came, None
                self.trips += 1
                self.arrived.set()
        self.channel.close()

    def _rest(self) -> float:
        return self._seconds if not self._failed else min(LONGEST_REST, 2.0 ** (self._failed - 1))

    def _travel(self, trip: Trip) -> Return:
        try:
            pieces = [write(text) for text in trip.texts]
            sent = sum(piece.size for piece in pieces)
            request = Request(
                fingerprint=self.fingerprint, sender=self.sender, pieces=pieces, dropped=trip.dropped, wants=trip.wants,
                most=max(0, trip.most - sent),
            )  # fmt: skip
            reply = self.channel.trade(request, TIMEOUT_SECONDS)
            return self._read(trip, reply, sent)
        except Exception as error:
            self._lost(f"cannot be reached ({type(error).__name__}: {error})")
            return Return(trip=trip, reply=None)

    def _read(self, trip: Trip, reply: Reply, sent: int) -> Return:
        why = reply.refused
        if not why and reply.fingerprint != self.fingerprint:
            why = f"it answers for {reply.fingerprint}, and this engine has {self.fingerprint}"
        if why:
            self._lost(f"is not for this engine: {why}")
            return Return(trip=trip, reply=None, is_refusal=True)
        texts, refused = list[Text](), list[Piece]()
        for piece in reply.pieces:
            try:
                texts.append(read(piece, self.fingerprint.vocab))
            except Exception as error:
                refused.append(piece)
                self._refuse(error)
        self._found()
        size = sent + sum(piece.size for piece in reply.pieces)
        return Return(trip=trip, reply=reply, texts=texts, refused=refused, bytes=size)

    def _refuse(self, error: Exception) -> None:
        if not self._has_refused:
            self._has_refused = True
            self._log.warning(
                "rolltree refuses text of another engine, and its rollout; counted as shared_refused from now on, "
                "logged once: %s", error,
            )  # fmt: skip

    def _lost(self, why: str) -> None:
        self._failed += 1
        if self._failed == 1:
            self._log.warning(
                "rolltree: the exchange of rollouts %s. This engine drafts from its own rollouts alone and goes on "
                "trying; counted as shared_failures.", why,
            )  # fmt: skip

    def _found(self) -> None:
        if self._failed:
            self._log.info("rolltree: the exchange of rollouts is there again, after %d failed tries.", self._failed)
        self._failed, self._well = 0, self._clock()
