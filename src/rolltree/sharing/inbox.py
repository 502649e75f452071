"""What this engine knows of others' rollouts, and how their text enters its trees; on the engine's thread.

A rollout of another engine is a session here that is not drafted for: its pieces are appended in order, and it is kept
when the other keeps it. So text enters a tree once, with the weight of a sibling, whether it came in parts or whole.
Invariants: text enters in portions, a bounded number of tokens between two steps; a session of a prompt that this
engine no longer generates is closed and forgotten, so that it does not hold the prompt's tree.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rolltree.cache import RolloutCache
from rolltree.recent import Recent
from rolltree.sharing.counts import SharingCounts
from rolltree.sharing.message import Text, Want
from rolltree.traces.rollout import StoredRollout, segments
from rolltree.types import Int32Array

PORTION = 128
"""Tokens that enter at once."""
OPENING = 32
"""Tokens whose indexing takes as long as opening or closing a session, about."""
NEVER = 2**62
"""More tokens than any rollout has: nothing more is wanted of it."""
_CLOSED = -1


@dataclass(slots=True, eq=False)
class _Followed:
    """A rollout of another engine."""

    name: str
    have: int = 0
    """Tokens that came, entered or not."""
    session: int = _CLOSED
    first: Text | None = None
    """The piece that began it."""
    entered: list[Int32Array] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Event:
    """A portion of text, or the end of a rollout."""

    followed: _Followed
    text: Text | None = None
    """The piece that the portion is of; None: the rollout ends."""
    tokens: Int32Array | None = None
    is_context: bool = False
    keep: bool = False


class Inbox:
    """Rollouts of others on their way into a cache.

    Args:
        cache: where they go.
        counts: where what enters and what is refused is counted.
        log: gets one line when something cannot enter.

    """

    def __init__(self, cache: RolloutCache, counts: SharingCounts, log: logging.Logger) -> None:
        self.cache, self.counts, self.log = cache, counts, log
        self._seen: Recent[tuple[int, int]] = Recent()  # prompt -> its tree, the last finished rollout that is known
        self._followed: dict[str, _Followed] = {}
        self._events: deque[_Event] = deque()
        self._sessions: set[int] = set()
        self._live: dict[str, int] = {}

    def __len__(self) -> int:
        """Portions that wait to enter."""
        return len(self._events)

    def wants(self) -> dict[str, Want]:
        """Return what to ask of the exchange: for each prompt that is being generated, what is known of it."""
        self._live = live = self.cache.live(without=self._sessions)
        running: dict[str, dict[str, int]] = {name: {} for name in live}
        for stream, followed in list(self._followed.items()):
            if followed.name in live:
                running[followed.name][stream] = followed.have
            else:
                self._end(stream, keep=False)
        return {name: Want(seen=self._number(name, tree), running=running[name]) for name, tree in live.items()}

    def take(self, texts: Iterable[Text], seen: Mapping[str, int], gone: Iterable[str]) -> None:
        """Queue what the exchange answered."""
        for text in texts:
            self._queue(text)
        for stream in gone:
            self._end(stream, keep=False)
        for name, number in seen.items():
            if name in self._live:
                self._seen[name] = (self._live[name], number)

    def ignore(self, stream: str, name: str) -> None:
        """Drop a rollout of which a part was refused, and take no more of it."""
        self._end(stream, keep=False)
        self._followed[stream] = _Followed(name, NEVER)

    def start_anew(self) -> None:
        """The exchange is another: its numbers begin anew, and what it does not know it will say is gone."""
        self._seen.clear()

    def enter(self, most: int) -> None:
        """Let about `most` tokens enter the trees."""
        while self._events and most > 0:
            event = self._events.popleft()
            try:
                most -= self._enter(event)
            except Exception as error:  # this rollout is left out; those of others enter
                self._fail(event.followed, error)

    def _queue(self, text: Text) -> None:
        followed = self._followed.get(text.stream)
        if followed is None:
            if text.prompt is None or text.name not in self._live:
                return
            followed = self._followed[text.stream] = _Followed(text.name)
        if text.start <= followed.have < text.stop:
            at = text.start
            for tokens, is_context in segments(text.tokens, text.context):
                new = tokens[max(0, followed.have - at) :]
                self._events += [
                    _Event(followed, text, new[i : i + PORTION], is_context) for i in range(0, len(new), PORTION)
                ]
                at += len(tokens)
            followed.have = text.stop
        if text.is_done:
            self._end(text.stream, keep=text.stop == followed.have)

    def _end(self, stream: str, *, keep: bool) -> None:
        followed = self._followed.pop(stream, None)
        if followed is not None:
            self._events.append(_Event(followed, keep=keep))

    def _number(self, name: str, tree: int) -> int:
        """The last finished rollout that a prompt's tree knows; none where the tree was made anew."""
        known_tree, number = self._seen.get(name, (tree, 0))
        return number if known_tree == tree else 0

    def _enter(self, event: _Event) -> int:
        """Do what an event says; return about how many tokens' time it took."""
        followed, text, tokens = event.followed, event.text, event.tokens
        if text is None or tokens is None:
            return self._close(followed, event.keep)
        if followed.session == _CLOSED:
            assert text.prompt is not None, "the first piece has the prompt"
            version = min(text.version, self.cache.version)  # a policy that this engine does not have yet
            followed.session = self.cache.open(text.prompt, key=text.key, version=version, foreign=True)
            self._sessions.add(followed.session)
            followed.first = text
        if self.cache.store is not None:  # which may give back the same rollout
            followed.entered.append(tokens)
        self.cache.extend(followed.session, tokens, context=event.is_context)
        self.counts.shared_received += len(tokens)
        return OPENING + len(tokens)

    def _close(self, followed: _Followed, keep: bool) -> int:
        if followed.session != _CLOSED:
            session, followed.session = followed.session, _CLOSED
            self._sessions.discard(session)
            self.cache.close(session, keep=keep, told=_whole(followed) if keep else None)
            self.counts.shared_rollouts += keep
        return OPENING

    def _fail(self, followed: _Followed, error: Exception) -> None:
        self.counts.shared_refused += 1
        if self.counts.shared_refused == 1:
            self.log.warning("rolltree: text of another engine cannot enter the trees; logged once: %s", error)
        self._events = deque(event for event in self._events if event.followed is not followed)
        for stream in [stream for stream, one in self._followed.items() if one is followed]:
            self._followed[stream] = _Followed(followed.name, NEVER)
        session, followed.session = followed.session, _CLOSED
        if session in self._sessions:
            self._sessions.discard(session)
            self.cache.close(session, keep=False)


def _whole(followed: _Followed) -> StoredRollout | None:
    """All of a rollout, as a store that its engine writes to has it; None where this engine has no store."""
    first = followed.first
    if first is None or first.prompt is None or not followed.entered:
        return None
    tokens = np.concatenate(followed.entered)
    return StoredRollout(prompt_token_ids=first.prompt, token_ids=tokens, key=first.key, version=first.version)
