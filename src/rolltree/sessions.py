"""The text of running sessions: on its way into the trees and, with a store, into the journal, and drafts that read it.

Thread-safe. Knows no prompts and no limits: `cache` does, and is the only user.

Invariants. All text goes through here, so trees and journal hold the same. A session that missed a token through an
exception has a hole, and is never kept.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rolltree._native import Drafts, Forest
from rolltree.errors import InvalidInputError, SessionClosedError
from rolltree.forking import guard
from rolltree.metrics import StoreStats
from rolltree.prompts import PromptTree
from rolltree.tokens import as_integer, as_integers, as_tokens
from rolltree.types import Float32Array, Int32Array, Int64Array, TokenIds

if TYPE_CHECKING:
    from rolltree.store.journal import Journal, Page


class Sessions:
    """Live sessions, each with its prompt's tree. Whole numbers of any kind are taken, one by one or as lists.

    Args:
        forest: where the trees are.
        journal: keeps the text for the store; None: there is none.

    """

    def __init__(self, forest: Forest, journal: Journal | None) -> None:
        self._forest, self._journal = forest, journal
        self._lock = threading.RLock()
        guard(self)  # so that a forked child can take it
        self._live: dict[int, PromptTree] = {}
        self._holes: set[int] = set()  # live sessions that missed a token

    def extend(self, session: int, tokens: TokenIds, *, context: bool = False) -> None:
        """Append generated tokens, or tool output (`context=True`: counted like prompt text).

        Raises:
            SessionClosedError: the session is closed or never existed.
            InvalidInputError: bad token ids; nothing was appended.

        """
        session, checked, context = as_integer(session, "session"), as_tokens(tokens), bool(context)
        try:
            self._forest.append(session, checked, context)
            if self._journal is not None:
                self._journal.extend(session, checked, context)
        except (InvalidInputError, SessionClosedError):
            raise
        except BaseException:
            self._missed((session,))
            raise
        self._keep_within()

    def append(self, sessions: ArrayLike, tokens: ArrayLike, offsets: ArrayLike) -> None:
        """Append generated tokens to many sessions: session b gets `tokens[offsets[b]:offsets[b + 1]]`.

        Args:
            sessions: int64 [B], live sessions.
            tokens: int32 [n].
            offsets: int32 [B + 1].

        Raises:
            SessionClosedError, InvalidInputError: nothing was appended. As after any exception, no session of the call
                will be kept, because it lacks what was generated.

        """
        with self._whole(sessions) as handles:
            emitted, cuts = _emitted(tokens, offsets)
            self._forest.append_batch(handles, emitted, cuts)
            self._write_along(handles, emitted, cuts)

    def took_in(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """Note what a device's stream has appended to live sessions itself (native/step.h); arguments as `append`.

        Their journal gets it, and room is made.
        """
        self._write_along(handles, tokens, offsets)
        self._keep_within()

    def settle(
        self, sessions: ArrayLike, drafts: Drafts, rows: ArrayLike, verified: ArrayLike, tokens: ArrayLike,
        offsets: ArrayLike,
    ) -> Int32Array:  # fmt: skip
        """Judge drafts by the tokens really emitted, learn from the tokens, and append them.

        Args:
            sessions: int64 [B], live sessions.
            drafts: as filled by `draft`.
            rows: int32 [B], the row of each session's draft, -1 where it has none.
            verified: int32 [rows of the draft], how many nodes of each row were verified.
            tokens: int32 [n], all emitted tokens.
            offsets: int32 [B + 1], session b emitted `tokens[offsets[b]:offsets[b + 1]]`.

        Returns:
            int32 [B], accepted draft tokens.

        Raises:
            SessionClosedError, InvalidInputError: see `append`.

        """
        with self._whole(sessions) as handles:
            accepted = np.empty(len(handles), np.int32)
            emitted, cuts = _emitted(tokens, offsets)
            rows, verified = as_integers(rows, np.int32, "rows"), as_integers(verified, np.int32, "verified")
            self._forest.settle(handles, _checked(drafts), rows, verified, emitted, cuts, accepted)
            self._write_along(handles, emitted, cuts)
        return accepted

    def draft(
        self, sessions: ArrayLike, limits: ArrayLike, out: Drafts, *, min_survival: float, min_match: int, tree: bool,
        raw: bool = False,
    ) -> None:  # fmt: skip
        """Draft for sessions int64 [B], at most `limits` int32 [B] nodes each, into the first B rows of `out`.

        `min_survival` and `min_match` are as in `DraftConfig`; `tree` lets drafts branch; `raw` takes the shares after
        the longest suffix in the own tree as they are, not calibrated.

        Raises:
            SessionClosedError, InvalidInputError: a session is closed, or a length does not fit.

        """
        handles, most = as_integers(sessions, np.int64, "sessions"), as_integers(limits, np.int32, "limits")
        self._forest.draft_batch(handles, most, min_survival, min_match, tree, _checked(out), raw)

    def matches(self, sessions: ArrayLike) -> Int32Array:
        """Tokens of the longest suffix that each session's own tree continues: int64 [B] -> int32 [B]."""
        handles = as_integers(sessions, np.int64, "sessions")
        found = np.empty(len(handles), np.int32)
        self._forest.matches(handles, found)
        return found

    def longest_continuation(self, session: int, text: TokenIds, *, shared: bool = False) -> int:
        """How many first tokens of `text` [n] follow some suffix of a session's text: the draft of an oracle.

        `shared`: also in the tree of all prompts.
        """
        return self._forest.longest_continuation(as_integer(session, "session"), as_tokens(text, "text"), bool(shared))

    def source_sums(self) -> list[tuple[int, int]]:
        """Drafted and accepted tokens so far, for each of `metrics.SOURCES`."""
        return self._forest.source_sums()

    def annotate(
        self, session: int, *, sample: int | None = None, reward: float | None = None,
        logprobs: Sequence[float] | Float32Array | None = None,
    ) -> None:  # fmt: skip
        """Say what the store should know of a session's rollout besides its text; nothing without a store."""
        if self._journal is not None:
            self._journal.annotate(as_integer(session, "session"), sample=sample, reward=reward, logprobs=logprobs)

    @property
    def running(self) -> Mapping[int, Page]:
        """Open sessions that will be kept, if they end so, with their text so far; empty where nobody listens."""
        return {} if self._journal is None else self._journal.pages

    @property
    def closing(self) -> int:
        """For a listener: the session whose rollout it is told of."""
        return -1 if self._journal is None else self._journal.closing

    def live(self, *, without: Collection[int] = ()) -> dict[str, int]:
        """Name of each prompt with an open session that is not among `without`, and its tree's number; O(sessions)."""
        with self._lock:
            return {entry.key: entry.tree for session, entry in self._live.items() if session not in without}

    def store_stats(self) -> StoreStats:
        """Count what the store did for this cache; zeros without one."""
        return self._journal.stats() if self._journal else StoreStats()

    def _write_along(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        if self._journal is not None:
            self._journal.advance(handles, tokens, offsets)

    @contextmanager
    def _whole(self, sessions: ArrayLike) -> Iterator[Int64Array]:
        """Sessions whose tokens were not all taken in are never kept."""
        handles = as_integers(sessions, np.int64, "sessions")
        try:
            yield handles
        except BaseException:
            self._missed(handles.tolist())
            raise
        self._keep_within()

    def _missed(self, sessions: Iterable[int]) -> None:
        with self._lock:
            self._holes.update(session for session in sessions if session in self._live)

    def _keep_within(self) -> None:
        """Make room after text was taken in; the cache's concern."""


def _emitted(tokens: ArrayLike, offsets: ArrayLike) -> tuple[Int32Array, Int32Array]:
    return as_integers(tokens, np.int32, "tokens"), as_integers(offsets, np.int32, "offsets")


def _checked(drafts: Drafts) -> Drafts:
    if not isinstance(drafts, Drafts):
        raise InvalidInputError("drafts", drafts, "rolltree._native.Drafts", "Make them with Drafts(rows, width).")
    return drafts
