"""Keeps the text of running sessions until they close; what is kept then goes to the store, and to who listens.

The trees have no way back from a state to a text that left the window, so the text is written along: about 0.2 µs a
session and step. Knows no trees. Not thread-safe for one session, like the session itself.

Invariant: what goes to the store is a session's whole text. A session of which a part could not be written down is
spoiled: it ends without a rollout. No failure of the store, of a listener or of the journal reaches who generates.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rolltree.errors import InvalidInputError, StoreCorruptedError
from rolltree.metrics import StoreStats
from rolltree.tokens import as_key, as_tokens, as_version
from rolltree.traces.rollout import StoredRollout, as_logprobs, as_reward, as_sample
from rolltree.types import Float32Array, Int32Array, Int64Array

if TYPE_CHECKING:
    from rolltree.store.store import RolloutStore  # SQLite, for those alone who have a store

Listener = Callable[[StoredRollout], None]
"""Gets each rollout that is kept, in the thread that closed it: it must be quick."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Page:
    """A running session; `text` grows, so whoever reads it remembers how far."""

    prompt: Int32Array
    key: str | None
    version: int
    text: array[int] = field(default_factory=lambda: array("i"))
    context: list[tuple[int, int]] = field(default_factory=list)
    sample: int | None = None
    reward: float | None = None
    logprobs: Float32Array | None = None


class Journal:
    """Sessions on their way to a store, to listeners, or to both.

    Args:
        store: where kept rollouts are committed; None: nowhere.

    """

    def __init__(self, store: RolloutStore | None) -> None:
        self.store = store
        self.listeners: list[Listener] = []
        self.pages: dict[int, Page] = {}
        """Sessions that run and will be kept, if they end so."""
        self.closing = -1
        """While listeners are told of a rollout: the session that it was."""
        self.undelivered = 0
        """Rollouts that a listener failed to take."""
        self.spoiled = 0
        """Sessions that end without a rollout, because a part of their text is not known."""
        self.unread = 0
        """Prompts that were opened without what the file knows of them, because it could not be read."""
        self.damaged = 0
        """Rollouts that were left out of a prompt's tree, because they are damaged."""
        self.unfit = 0
        """Rollouts that were left out, because the model does not have some of their token ids."""
        self._begun = _sums(store)
        self._gone: int | None = None  # commits when the file could not be read

    def open(self, session: int, prompt: Int32Array, key: str | None, version: int) -> None:
        """Begin a session that will be committed.

        Raises:
            InvalidInputError: a key or a version that the store cannot hold; nothing has begun.

        """
        self.pages[session] = Page(prompt.copy(), as_key(key), as_version(version))  # the caller may re-use its array

    def extend(self, session: int, tokens: Int32Array, context: bool) -> None:
        """Append [n] tokens to one session; sessions that are not committed are ignored, here and below."""
        page = self.pages.get(session)
        if page is None or not len(tokens):
            return
        start = len(page.text)
        try:
            page.text.frombytes(_bytes(tokens))
        except Exception as error:
            self.spoil(session, error)
            return
        if context:
            page.context.append((start, len(page.text)))

    def advance(self, sessions: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """Append tokens[offsets[b]:offsets[b + 1]] to session b: int64 [B], int32 [n], int32 [B + 1]."""
        try:
            pages, new, ends = self.pages, array("i", _bytes(tokens)), offsets.tolist()
            for session, start, stop in zip(sessions.tolist(), ends[:-1], ends[1:], strict=True):
                page = pages.get(session)
                if page is not None:
                    page.text += new[start:stop]
        except Exception as error:  # some have these tokens, some have not: none is whole for sure
            for session in sessions.tolist():
                self.spoil(session, error)

    def spoil(self, session: int, why: object = "a part of its text is not known") -> None:
        """Say that a session missed a token: it will never be committed, however it closes."""
        if self.pages.pop(session, None) is not None:
            self.spoiled += 1
            if self.spoiled & (self.spoiled - 1) == 0:
                _log.warning("Session %d is not stored (%d so far): %s", session, self.spoiled, why)

    def annotate(
        self, session: int, *, sample: int | None = None, reward: float | None = None,
        logprobs: Sequence[float] | Float32Array | None = None,
    ) -> None:  # fmt: skip
        """Say more of a running session than its text; what is None stays as it was said before.

        Raises:
            InvalidInputError: a value that the store cannot hold; nothing was changed.

        """
        sample, reward = as_sample(sample), as_reward(reward)
        probs = None if logprobs is None else as_logprobs(logprobs)
        page = self.pages.get(session)
        if page is not None:
            page.sample = page.sample if sample is None else sample
            page.reward = page.reward if reward is None else reward
            page.logprobs = page.logprobs if probs is None else probs

    def close(self, session: int, keep: bool) -> StoredRollout | None:
        """End a session; its rollout goes to the store if it is kept and not empty, and is returned.

        Log-probabilities that are not one for each token are left out, with a warning. A store that cannot write is no
        error here: see `RolloutStore.flush`.

        Raises:
            InvalidInputError: the caller closed the store, or this is a forked child. The session has ended.

        """
        page = self.pages.pop(session, None)
        if page is None or not keep or not page.text:
            return None
        if page.logprobs is not None and len(page.logprobs) != len(page.text):
            counts = f"{len(page.logprobs)} log-probabilities for {len(page.text)} tokens"
            _log.warning("Session %d is stored without %s", session, counts)
            page.logprobs = None
        try:
            rollout = StoredRollout.of(
                page.prompt, np.frombuffer(page.text, np.int32), key=page.key, version=page.version,
                sample=page.sample, logprobs=page.logprobs, reward=page.reward, context=page.context,
            )  # fmt: skip
            self._tell(session, rollout)
            if self.store is not None:
                self.store.put(rollout)
            return rollout
        except InvalidInputError:
            raise
        except Exception as error:
            self.pages[session] = page
            self.spoil(session, error)
            return None

    def _tell(self, session: int, rollout: StoredRollout) -> None:
        self.closing = session
        for listener in self.listeners:
            try:
                listener(rollout)
            except Exception as error:
                self.undelivered += 1
                if self.undelivered & (self.undelivered - 1) == 0:
                    _log.warning("A rollout did not reach a listener (%d so far): %s", self.undelivered, error)

    def earlier(self, prompt: Int32Array, key: str | None, last: int) -> list[StoredRollout]:
        """What the store knows of a prompt or key, without waiting.

        After a failure the file is left alone, and only what waits in memory is known, until a commit succeeds.
        """
        store, asked = self.store, None if key is not None else prompt
        if store is None:
            return []
        try:
            known = store.recall(asked, key=key, last=last, file=self._gone != store.commits, damaged=self._leave_out)
        except Exception as error:
            self._fail(error, store.commits)
            return _in_memory(store, asked, key, last)
        if self._gone == store.commits:
            self.unread += 1
        else:
            self._gone = None
        return [rollout for rollout in known if self._fits(rollout, store)]

    def _fits(self, rollout: StoredRollout, store: RolloutStore) -> bool:
        if not store.vocab or max(map(_largest, (rollout.token_ids, rollout.prompt_token_ids))) < store.vocab:
            return True
        self.unfit += 1
        if self.unfit & (self.unfit - 1) == 0:
            text = "Rollout %d of %s has ids beyond the model's %d words: left out (%d so far)"
            _log.warning(text, rollout.id, store.path, store.vocab, self.unfit)
        return False

    def stats(self) -> StoreStats:
        """What the store did since this was made, and what was not got from it; all zero without one."""
        sums = {name: number - self._begun[name] for name, number in _sums(self.store).items()}
        waiting = 0 if self.store is None else self.store.waiting
        return StoreStats(
            unread=self.unread, damaged=self.damaged, unfit=self.unfit, spoiled=self.spoiled, waiting=waiting, **sums
        )  # fmt: skip

    def _leave_out(self, error: StoreCorruptedError) -> None:
        self.damaged += 1
        if self.damaged & (self.damaged - 1) == 0:
            _log.warning("Going on without what is damaged (%d so far): %s", self.damaged, error)

    def _fail(self, error: Exception, commits: int) -> None:
        self.unread += 1
        if self._gone is None:
            _log.warning("Going on without what the store knows: %s", error)
        self._gone = commits


def _in_memory(store: RolloutStore, prompt: Int32Array | None, key: str | None, last: int) -> list[StoredRollout]:
    try:
        return store.recall(prompt, key=key, last=last, file=False)
    except Exception:  # closed, or a fork: said by `close`
        return []


def _sums(store: RolloutStore | None) -> dict[str, int]:
    return {name: 0 if store is None else getattr(store, name) for name in ("commits", "dropped", "forgotten")}


def _largest(tokens: Int32Array) -> int:
    return int(tokens.max(initial=-1))


def _bytes(tokens: Int32Array) -> bytes:
    return (tokens if tokens.dtype == np.int32 else as_tokens(tokens)).tobytes()
