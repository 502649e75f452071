"""Probing agent loops for their first prompts: nothing is generated, whatever the loop does with its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rolltree.tokens import prompt_key
from rolltree.verl.client import MarkingClient
from rolltree.verl.first_turns import PROBE, FirstTurnSeen, Probe
from rolltree.verl.marks import CURRENT, Mark

PROMPT = [5, 6, 7]


class Refusing:
    """A client of servers that nobody may ask."""

    async def generate(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a request was made")


async def loop(client: MarkingClient, tokens: list[int], log: list[str], **media: object) -> None:
    """An agent loop that takes failed requests lightly, and goes on to a tool."""
    try:
        await client.generate(str(tokens), prompt_ids=tokens, sampling_params={"temperature": 1.0}, **media)
    except Exception:
        log.append("failed")
    log.append("tool")


def probed(*loops: Any) -> Probe:
    async def one(work: Any, probe: Probe) -> None:
        with pytest.raises(FirstTurnSeen):
            await work
        probe.end()

    async def run() -> Probe:
        probe = Probe(len(loops))
        token = PROBE.set(probe)
        tasks = [asyncio.create_task(one(work, probe)) for work in loops]  # they inherit the probe
        PROBE.reset(token)
        await asyncio.wait_for(probe.done.wait(), 30)
        await asyncio.gather(*tasks)
        return probe

    return asyncio.run(run())


def test_the_first_turn_is_seen_and_nothing_is_asked() -> None:
    log: list[str] = []
    client = MarkingClient(Refusing())
    mark = CURRENT.set(Mark(version=3))
    probe = probed(loop(client, PROMPT, log), loop(client, [1, 2], log))
    CURRENT.reset(mark)
    assert log == []
    first, second = probe.turns
    assert first.token_ids == PROMPT
    assert first.key == prompt_key(PROMPT)
    assert first.version == 3
    assert first.sampling["temperature"] == 1.0
    assert second.key == prompt_key([1, 2])


def test_prompts_with_pictures_are_left_alone() -> None:
    log: list[str] = []
    probe = probed(loop(MarkingClient(Refusing()), PROMPT, log, image_data=["picture"]))
    assert probe.turns == log == []


def test_outside_a_probe_requests_go_through() -> None:
    log: list[str] = []
    asyncio.run(loop(MarkingClient(Refusing()), PROMPT, log))
    assert log == ["failed", "tool"]


def test_a_probe_of_nothing_is_done() -> None:
    async def run() -> None:
        await asyncio.wait_for(Probe(0).done.wait(), 30)

    asyncio.run(run())
