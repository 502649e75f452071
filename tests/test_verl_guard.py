"""What rolltree adds to a request or a step may fail; the request and the step do not notice."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.runahead import Launch, RunAheadConfig
from rolltree.serving.ahead import AheadRequest
from rolltree.verl.ahead_server import ServerAhead
from rolltree.verl.first_turns import FirstTurnSeen
from rolltree.verl.guard import Guard
from rolltree.verl.log import speak_up


def test_the_first_failure_is_told_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard("metrics")
    for number in range(3):
        with guard:
            raise ValueError(f"number {number}")
    assert guard.failures == 3
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "goes on without metrics" in told[0].getMessage()
    assert "number 0" in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit, FirstTurnSeen])
def test_what_ends_others_passes(kind: type[BaseException]) -> None:
    guard = Guard("metrics")
    with pytest.raises(kind), guard:
        raise kind
    assert guard.failures == 0


@pytest.mark.parametrize("level", [logging.NOTSET, logging.WARNING, logging.ERROR, None])
def test_warnings_are_seen_once_whatever_became_of_the_root_logger(
    level: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None: its handlers are gone; ERROR is what importing verl's vLLM server leaves."""
    root, ours = logging.getLogger(), logging.getLogger("rolltree")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", level or logging.ERROR)
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "level", logging.NOTSET)
    if level is not None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(level)
        root.addHandler(handler)
    ours.manager._clear_cache()  # type: ignore[attr-defined]
    speak_up()
    speak_up()
    with Guard("metrics"):
        raise ValueError
    written = capsys.readouterr().err
    assert written.count("goes on without metrics") == 1
    ours.manager._clear_cache()  # type: ignore[attr-defined]


class Engine:
    """Streams three outputs for each request, as `AsyncLLM.generate` does."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(policy="priority"))
        self.closed = 0

    async def generate(self, prompt: Any, sampling: Any, request_id: str, **kwargs: Any) -> AsyncIterator[Any]:
        try:
            for count in range(1, 4):
                await asyncio.sleep(0)
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * count)], request_id=request_id)
        finally:
            self.closed += 1

    async def abort(self, names: list[str]) -> None:
        raise RuntimeError("the engine is gone")


def server() -> Any:
    return SimpleNamespace(engine=Engine(), config=SimpleNamespace(max_num_seqs=2))


REAL = SimpleNamespace(extra_args={"rolltree": {"key": "p"}}, max_tokens=8)
BREAKS = ("real", "tick", "exit", "options", None)


def broken(ahead: ServerAhead, what: str | None) -> Any:
    """Break one part of the watching; return sampling parameters of a request."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{what} is broken")

    if what == "real":
        ahead.llm.real = fail  # type: ignore[method-assign]
    if what == "tick":
        ahead.llm.driver.output = fail  # type: ignore[method-assign]
    if what == "exit":
        ahead.llm.driver.ended = fail  # type: ignore[method-assign]
    return SimpleNamespace(extra_args=[1], max_tokens=8) if what == "options" else REAL


@pytest.mark.parametrize("what", BREAKS)
def test_watching_that_fails_does_not_reach_the_request(what: str | None) -> None:
    async def run() -> tuple[list[int], int, int]:
        made = server()
        ahead = ServerAhead(made, RunAheadConfig())
        await ahead.llm.begin()
        sampling = broken(ahead, what)
        lengths = [
            len(output.outputs[0].token_ids) async for output in made.engine.generate([1], sampling, "r", priority=0)
        ]
        return lengths, made.engine.closed, ahead.guard.failures

    lengths, closed, failures = asyncio.run(run())
    assert lengths == [1, 2, 3]
    assert closed == 1
    assert (failures > 0) == (what is not None)


def test_a_request_that_is_given_up_early_is_closed() -> None:
    async def run() -> tuple[int, int]:
        made = server()
        ahead = ServerAhead(made, RunAheadConfig())
        await ahead.llm.begin()
        stream = made.engine.generate([1], REAL, "r")
        await stream.__anext__()
        await stream.aclose()
        assert ahead.llm._follower is not None
        return made.engine.closed, len(ahead.llm.driver.real)

    assert asyncio.run(run()) == (1, 0)


def test_a_step_that_cannot_be_ended_is_followed_by_another() -> None:
    """The engine cannot cancel what runs ahead: counted, and requests are watched again."""

    async def run() -> tuple[int, bool]:
        made = server()
        ahead = ServerAhead(made, RunAheadConfig())
        await ahead.llm.begin()
        first = ahead.llm._follower
        ahead.llm.driver.running["ahead"] = AheadRequest(Launch(key="p", sample=0, max_tokens=8))
        await ahead.next_step()
        return ahead.guard.failures, ahead.llm._follower not in (None, first)

    assert asyncio.run(run()) == (1, True)
