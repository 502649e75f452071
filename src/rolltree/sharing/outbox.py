"""What this engine tells others of its own rollouts, running and finished; on the engine's thread.

Reads the text that the cache writes along. Remembers how far the exchange has each rollout, so that what was lost on
the way is told again. Invariant: finished rollouts that wait hold a bounded number of tokens; the oldest leave first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rolltree.cache import RolloutCache
from rolltree.sharing.counts import SharingCounts
from rolltree.sharing.message import OVERHEAD, Text
from rolltree.tokens import prompt_key
from rolltree.traces.rollout import Span, StoredRollout
from rolltree.types import Int32Array

WAITING = 1 << 22
"""Tokens of finished rollouts that may wait for the exchange."""
BYTES_A_TOKEN = 2
"""Packed, about: short pieces take more than the 0.7 of whole rollouts."""
ENOUGH = 16
"""New tokens of a running rollout that are worth a piece: a piece has the overhead of some 100 bytes."""


@dataclass(slots=True, eq=False)
class _Told:
    """A rollout of this engine."""

    stream: str
    name: str
    prompt: Int32Array
    key: str | None
    version: int
    sent: int = 0
    whole: Int32Array | None = None
    """All of it, once it is finished."""
    context: Sequence[Span] = ()


@dataclass(slots=True)
class Outbox:
    """Rollouts of one engine that others are told of.

    Args:
        sender: the engine's name, which no other ever has.
        counts: where what is told and what is dropped is counted.

    """

    sender: str
    counts: SharingCounts
    _cache: RolloutCache = field(init=False)
    _running: dict[int, _Told] = field(default_factory=dict)
    _finished: dict[str, _Told] = field(default_factory=dict)
    _dropped: list[tuple[str, str]] = field(default_factory=list)
    _flying: list[tuple[_Told, int]] = field(default_factory=list)
    _waiting: int = 0
    _number: int = 0

    def follow(self, cache: RolloutCache) -> None:
        """Tell of what this cache keeps from now on; what ran in the one before is told no further."""
        self._drop(list(self._running.values()))
        self._running.clear()
        self._cache = cache
        cache.listen(self._closed)

    def collect(self, most: int) -> tuple[list[Text], list[tuple[str, str]]]:
        """Return what is new, about `most` bytes, finished rollouts first; and streams that ended unkept."""
        self._look()
        texts, self._flying = list[Text](), []
        for told, text in self._news():
            texts.append(text)
            self._flying.append((told, text.stop))
            most -= OVERHEAD + BYTES_A_TOKEN * (len(text.tokens) + (0 if text.prompt is None else len(text.prompt)))
            if most <= 0:
                break
        return texts, list(self._dropped)

    def settle(self, dropped: Sequence[tuple[str, str]]) -> None:
        """The exchange has all that was collected last."""
        for told, stop in self._flying:
            self.counts.shared_sent += stop - told.sent
            told.sent = stop
            if told.whole is not None and stop == len(told.whole) and told.stream in self._finished:
                del self._finished[told.stream]
                self._waiting -= stop
        self._flying = []
        self._dropped = self._dropped[len(dropped) :]

    def start_anew(self) -> None:
        """The exchange is another: it has nothing of this engine."""
        for told in (*self._running.values(), *self._finished.values()):
            told.sent = 0
        self._flying, self._dropped = [], []

    def _closed(self, rollout: StoredRollout) -> None:
        """A session was closed, and its rollout kept."""
        told = self._running.pop(self._cache.closing, None)
        if told is None:
            told = self._told(rollout.prompt_token_ids, rollout.key, rollout.version)
        told.whole, told.context = rollout.token_ids, rollout.context
        self._finished[told.stream] = told
        self._waiting += len(told.whole)
        while self._waiting > WAITING:
            oldest = self._finished.pop(next(iter(self._finished)))
            self._waiting -= 0 if oldest.whole is None else len(oldest.whole)
            self.counts.shared_dropped += 1
            self._drop([oldest])

    def _look(self) -> None:
        """Find sessions that began, and those that ended without being kept."""
        pages = self._cache.running
        self._drop([self._running.pop(session) for session in list(self._running) if session not in pages])
        for session, page in pages.items():
            if session not in self._running:
                self._running[session] = self._told(page.prompt, page.key, page.version)

    def _news(self) -> Iterator[tuple[_Told, Text]]:
        for told in list(self._finished.values()):
            assert told.whole is not None
            yield told, _text(told, told.whole[told.sent :], told.context, is_done=True)
        for session, page in self._cache.running.items():
            told = self._running[session]
            if len(page.text) - told.sent >= ENOUGH:
                yield told, _text(told, np.frombuffer(page.text[told.sent :], np.int32), page.context)

    def _told(self, prompt: Int32Array, key: str | None, version: int) -> _Told:
        self._number += 1
        return _Told(f"{self.sender}/{self._number}", prompt_key(prompt, key), prompt, key, version)

    def _drop(self, told: Sequence[_Told]) -> None:
        self._dropped += [(one.name, one.stream) for one in told if one.sent]


def _text(told: _Told, tokens: Int32Array, context: Sequence[Span], *, is_done: bool = False) -> Text:
    spans = ((max(0, start - told.sent), stop - told.sent) for start, stop in context if stop > told.sent)
    head = told.prompt if told.sent == 0 else None
    return Text(
        stream=told.stream, name=told.name, start=told.sent, tokens=tokens, context=tuple(spans), is_done=is_done,
        prompt=head, key=told.key, version=told.version,
    )  # fmt: skip
