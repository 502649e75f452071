"""Engines whose steps are done in a device's stream share rollouts: text enters while a step is in flight."""

from __future__ import annotations

import pytest

from rolltree.sharing.exchange import Exchange
from tests.sharing_tools import PROMPTS, Here, attach_port, stats, submit, trip
from tests.streamed_host import StreamedHost

LENGTH = 100


def host(exchange: Exchange, name: str, lag: int) -> StreamedHost:
    made = StreamedHost(lag=lag, share="ray")
    attach_port(made, Here(exchange), name)
    return made


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_running_text_of_another_drafts_and_text_stays(lag: int) -> None:
    exchange, alone = Exchange(), StreamedHost(lag=lag)
    one, other = host(exchange, "one", lag), host(exchange, "other", lag)
    submit(one, "x", PROMPTS[:4], max_tokens=LENGTH)
    while max(len(state.output) for state in one.states.values()) < 80:
        one.step()
    trip(one)
    for late in (alone, other):
        submit(late, "x", PROMPTS[:4], max_tokens=LENGTH)
        for _ in range(1 + lag):  # their sessions are known then
            late.step()
    trip(other)
    assert stats(other)["shared_received"] > 40
    text = alone.run()
    assert other.run() == one.run() == text
    assert stats(other)["steps"] < stats(alone)["steps"]
    submit(other, "y", PROMPTS[:4], max_tokens=LENGTH)
    other.step()
    trip(one, other)
    texts = other.run()
    assert all(texts[f"y-{n}"] == text[f"x-{n}"] for n in range(4))
    for each in (one, other):
        each.step()  # the core hears of the last ends
        each.drain()
        each.core.rest()
        each.core.drafter.cache.check()
    trip(one, other)
    held = stats(other)
    assert (held["errors"], held["shared_refused"], held["shared_failures"]) == (0, 0, 0)
    assert [stats(each)["shared_sent"] for each in (one, other)] == [4 * LENGTH, 8 * LENGTH], "each its own, once"


def test_text_enters_while_a_step_is_in_flight() -> None:
    """Between the launch of a step and what the device does of it, over and over."""
    exchange, alone = Exchange(), StreamedHost(lag=0)
    one, other = host(exchange, "one", 2), host(exchange, "other", 2)
    for n in range(6):
        for each in (one, other, alone):
            submit(each, f"r{n}", PROMPTS, max_tokens=40)
        while one.states.keys() != {id for id, state in one.states.items() if len(state.output) >= 40}:
            one.step()
            other.step()
            trip(one, other)
    assert one.run() == other.run() == alone.run()
    assert stats(other)["shared_received"] > 0
    assert stats(other)["errors"] == stats(one)["errors"] == 0
    for each in (one, other):
        each.core.rest()
        each.core.drafter.cache.check()
