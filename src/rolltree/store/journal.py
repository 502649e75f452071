"""Keeps the text of running sessions until they close; what is kept then goes to the store.

The trees have no way back from a state to a text that left the window, so the text is written along: about 0.2 µs a
session and step. Knows no trees. Not thread-safe for one session, like the session itself.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rolltree.errors import StoreError
from rolltree.store.record import StoredRollout
from rolltree.store.store import RolloutStore
from rolltree.types import Float32Array, Int32Array, Int64Array

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Page:
    """A running session."""

    prompt: Int32Array
    key: str | None
    version: int
    text: array[int] = field(default_factory=lambda: array("i"))
    context: list[tuple[int, int]] = field(default_factory=list)
    sample: int | None = None
    reward: float | None = None
    logprobs: Sequence[float] | Float32Array | None = None


class Journal:
    """Sessions on their way into a store."""

    def __init__(self, store: RolloutStore) -> None:
        self.store = store
        self._pages: dict[int, _Page] = {}
        self._failed = False

    def open(self, session: int, prompt: Int32Array, key: str | None, version: int) -> None:
        """Begin a session that will be committed."""
        self._pages[session] = _Page(prompt, key, version)

    def extend(self, session: int, tokens: Int32Array, context: bool) -> None:
        """Append [n] tokens to one session; sessions that are not committed are ignored, here and below."""
        page = self._pages.get(session)
        if page is None or not len(tokens):
            return
        start = len(page.text)
        page.text.frombytes(tokens.tobytes())
        if context:
            page.context.append((start, len(page.text)))

    def advance(self, sessions: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """Append tokens[offsets[b]:offsets[b + 1]] to session b: int64 [B], int32 [n], int32 [B + 1]."""
        pages, new, ends = self._pages, array("i", tokens.tobytes()), offsets.tolist()
        for session, start, stop in zip(sessions.tolist(), ends, ends[1:], strict=False):
            page = pages.get(session)
            if page is not None:
                page.text += new[start:stop]

    def annotate(
        self, session: int, *, sample: int | None = None, reward: float | None = None,
        logprobs: Sequence[float] | Float32Array | None = None,
    ) -> None:  # fmt: skip
        """Say more of a running session than its text."""
        page = self._pages.get(session)
        if page is not None:
            page.sample, page.reward, page.logprobs = sample, reward, logprobs

    def close(self, session: int, keep: bool) -> None:
        """End a session; its rollout goes to the store if it is kept and not empty. Never fails."""
        page = self._pages.pop(session, None)
        if page is None or not keep or not page.text:
            return
        self.store.add(
            page.prompt, np.frombuffer(page.text, np.int32), key=page.key, version=page.version, sample=page.sample,
            logprobs=page.logprobs, reward=page.reward, context=page.context,
        )  # fmt: skip

    def earlier(self, prompt: Int32Array, key: str | None, last: int) -> list[StoredRollout]:
        """What the store knows of a prompt or key; nothing, and one warning, where it cannot be read."""
        try:
            return self.store.rollouts(None if key is not None else prompt, key=key, last=last)
        except StoreError as error:
            if not self._failed:
                self._failed = True
                _log.warning("Going on without what the store knows: %s", error)
            return []
