"""Finds out what agent loops would ask the engine first, by running them up to there: the prompt as the policy gets it.

Chat templates, tool schemas and parsers are the agent loop's business, so nobody else can say what its first prompt is.
A probed loop ends when it first generates: no request is made, no tool is called, nothing is scored or stored. Only
verl's own loops, which do nothing else before, are probed; an environment that acts first is left alone.

Pure asyncio: knows neither verl nor vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

PROBED_LOOPS = ("single_turn_agent", "tool_agent")
"""Agent loops whose first act is to generate."""
MEDIA = ("image_data", "video_data", "audio_data")


@dataclass(frozen=True, slots=True)
class FirstTurn:
    """What an agent loop would send first."""

    key: str
    version: int | None
    """Of the policy that it is made for, so far."""
    token_ids: list[int]
    sampling: dict[str, Any]
    """verl's sampling parameters, with the request's options in `extra_args`."""


class FirstTurnSeen(BaseException):
    """Ends a probed agent loop; not an `Exception`, so that no loop takes it for a failed request."""


@dataclass(slots=True)
class Probe:
    """Collects the first turns of `expected` agent loops."""

    expected: int
    turns: list[FirstTurn] = field(default_factory=list)
    ended: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.end(0)

    def see(self, turn: FirstTurn, media: Mapping[str, Any]) -> None:
        """Note a first turn, unless it has more than text; raise FirstTurnSeen."""
        if not any(media.get(name) for name in MEDIA):
            self.turns.append(turn)
        raise FirstTurnSeen

    def end(self, loops: int = 1) -> None:
        """Count agent loops that have ended, however they did."""
        self.ended += loops
        if self.ended >= self.expected:
            self.done.set()


PROBE: ContextVar[Probe | None] = ContextVar("rolltree_probe", default=None)
"""Set where agent loops are probed; tasks started there inherit it."""

__all__: Sequence[str] = ("PROBE", "PROBED_LOOPS", "FirstTurn", "FirstTurnSeen", "Probe")
