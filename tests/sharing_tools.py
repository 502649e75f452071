"""Engines over arrays that share rollouts, stepped by the tests, so that no verdict depends on the clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from rolltree.sharing.courier import Courier
from rolltree.sharing.exchange import Exchange
from rolltree.sharing.message import Fingerprint, Reply, Request
from rolltree.sharing.port import Port
from tests.streamed_host import StreamedHost
from tests.toy_host import VOCAB, ToyHost

AnyHost: TypeAlias = ToyHost | StreamedHost
MODEL = Fingerprint(model="toy", vocab=VOCAB)
PATIENCE = 120.0
"""Seconds until a test gives up; nothing that works takes nearly as long."""
PROMPTS = [[1, 2, n] for n in range(8)]
log = logging.getLogger("rolltree")


class Here:
    """A channel to an exchange in this process; `fails`: it cannot be reached."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.fails = exchange, False
        self.last: Reply | None = None

    def trade(self, request: Request, timeout: float) -> Reply:
        if self.fails:
            raise ConnectionError("planted")
        self.last = self.exchange.trade(request)
        return self.last

    def close(self) -> None:
        """Nothing to let go of."""


def sharing_host(channel: Any, name: str, fingerprint: Fingerprint = MODEL, *, rate: int = 1 << 30) -> ToyHost:
    """A toy host whose port uses this channel."""
    host = ToyHost(share="ray")
    attach_port(host, channel, name, fingerprint, rate=rate)
    return host


def attach_port(
    host: AnyHost, channel: Any, name: str, fingerprint: Fingerprint = MODEL, *, rate: int = 1 << 30
) -> None:
    """Let a host with the option `share` share by this channel."""
    assert host.core is not None
    courier = Courier(channel, fingerprint, name, seconds=0.0, bytes_a_second=rate, log=log)
    host.core.port = Port(courier, host.core.counts, log)
    host.core.port.follow(host.core.drafter.cache)


def port_of(host: AnyHost) -> Port:
    assert host.core is not None
    assert host.core.port is not None
    return host.core.port


def trip(*hosts: AnyHost) -> None:
    """Have each host make one trip from begin to end, and take in what came of it."""
    for host in hosts:
        port, end = port_of(host), time.monotonic() + PATIENCE
        goal = port.courier.trips + (1 if port.courier._trip is None else 2)
        while port.courier.trips < goal:
            assert time.monotonic() < end, "no trip came to its end"
            port.step()
            port.courier.arrived.wait(0.01)
        port.step()
        while port.waiting:
            port.step()


def submit(host: AnyHost, name: str, prompts: Sequence[list[int]] = PROMPTS, **settings: Any) -> None:
    for n, prompt in enumerate(prompts):
        host.add(f"{name}-{n}", prompt, **settings)


def stats(host: AnyHost) -> dict[str, float]:
    assert host.core is not None
    return host.core.stats()
