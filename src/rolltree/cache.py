"""The only owner of trees and of their text: sessions, policy versions, the shared tree, the byte cap.

Which tree belongs to which prompt is in `prompts`. Thread-safe. Does not decide what is worth drafting (see
`drafting`). With a store, closing a kept session commits its rollout there, and a prompt that is not held (evicted, or
from before a restart) is rebuilt from there when opened.

Invariants. Trees and store hold the same text: append, settle and journal go through here alone, and a session that
missed a token through an exception is never kept, whatever `close` is told. After every call the prompts' own trees
are within their part of `capacity_bytes` or being made smaller: idle prompts are evicted, least recently used first;
then prompts with live sessions lose their oldest rollouts. A prompt with live sessions is never evicted, and no own
tree makes room for the shared one, which has a part of its own. What the store holds changes drafts, never rollouts;
a store that fails is gone without.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from rolltree._native import Drafts, Forest
from rolltree.config import CacheConfig
from rolltree.errors import InvalidInputError, SessionClosedError
from rolltree.metrics import CacheStats
from rolltree.prompts import Entry, PromptTable
from rolltree.store import RolloutStore, StoredRollout
from rolltree.store.journal import Journal
from rolltree.tokens import as_key, as_tokens, as_version
from rolltree.types import Float32Array, Int32Array, Int64Array, TokenIds


@dataclass(slots=True)
class _Totals:
    opened: int = 0
    hits: int = 0
    live: dict[int, Entry] = field(default_factory=dict)
    holes: set[int] = field(default_factory=set)
    """Live sessions that missed a token."""


class RolloutCache:
    """Trees of earlier and running rollouts, one a prompt.

    Args:
        config: what is remembered, how long, and how much memory it may take.
        store: where kept rollouts are committed, and forgotten prompts come back from; None remembers in memory only.

    """

    def __init__(self, config: CacheConfig | None = None, *, store: RolloutStore | None = None) -> None:
        self.config = config or CacheConfig()
        self.store = store
        self._journal = None if store is None else Journal(store)
        self._lock = threading.RLock()
        self._version = 0
        self._totals = _Totals()
        shared = int(self.config.capacity_bytes * self.config.shared_fraction) if self.config.shared_window else 0
        own = self.config.capacity_bytes - shared
        self._forest = Forest(
            depth=self.config.depth,
            window=self.config.window,
            decay=self.config.decay,
            context_weight=max(1, round(64 * self.config.context_weight)),
            shared_window=self.config.shared_window,
            own_bytes=own,
            shared_bytes=shared,
        )
        if self.config.threads:
            self._forest.set_threads(self.config.threads)
        self._prompts = PromptTable(self._forest, self._journal, window=self.config.window, own_bytes=own)

    @property
    def forest(self) -> Forest:
        """The native core, to read or draft from; text goes in through the cache alone."""
        return self._forest

    @property
    def version(self) -> int:
        """Version of the policy that generates now."""
        return self._version

    @property
    def prompts(self) -> int:
        """Prompts with a tree; O(1)."""
        return len(self._prompts)

    @property
    def bytes(self) -> int:
        """Bytes of all trees now, pages that are being given back included; O(1)."""
        return self._forest.bytes()

    def set_version(self, version: int) -> None:
        """Announce a policy update; text of older versions counts less from now on.

        Raises:
            InvalidInputError: not a whole number, or a version below the current one.

        """
        version = as_version(version)
        with self._lock:
            if version < self._version:
                raise InvalidInputError("version", version, f"{self._version} or more", "Versions only grow.")
            self._version = version

    def open(
        self,
        prompt: TokenIds,
        *,
        key: str | None = None,
        version: int | None = None,
        read_only: bool = False,
        seed: int | None = None,
        coupled: bool = False,
        run_ahead: bool = False,
        murmur3_offset: int | None = None,
    ) -> int:
        """Start a session for one request.

        Args:
            prompt: token ids of the whole prompt.
            key: the user's id for the prompt (or conversation); None keys by the prompt itself.
            version: policy version that generates; None is the current one.
            read_only: draft from the tree but never write to it (validation).
            seed: of the request's sampler noise, taken modulo 2^64.
            coupled: the sampler uses coupled noise; drafts then follow it at forks.
            run_ahead: the text is generated ahead of need; drafts from it are counted as such.
            murmur3_offset: where the noise is murmur3 of (seed, position, token), as vLLM's, the position at which the
                first generated token is drawn. None: rolltree's own noise.

        Returns:
            A handle, never re-used.

        Raises:
            InvalidInputError: bad token ids, key or version.

        """
        tokens, key = as_tokens(prompt, "prompt"), as_key(key)
        wanted = None if version is None else as_version(version)
        with self._lock:
            entry, start = self._prompts.find(tokens, key, self._version)
            number = self._version if wanted is None else wanted
            self._totals.opened += 1
            self._totals.hits += self._forest.stats(entry.tree)["kept"] > 0
            handle = self._forest.open(
                entry.tree,
                number,
                read_only,
                start is not None,
                (seed or 0) % 2**64,
                coupled and seed is not None,
                run_ahead,
                murmur3_offset,
            )
            try:
                self._prompts.quote(handle, tokens, start)
                if self._journal is not None and not (read_only or run_ahead):
                    self._journal.open(handle, tokens, key, number)
            except BaseException:
                self._forest.close(handle, False)
                raise
            entry.live += 1
            self._totals.live[handle] = entry
            self._prompts.touch(entry)
            self._keep_within()
            return handle

    def rollouts(self, prompt: TokenIds, *, key: str | None = None) -> int:
        """Count the finished rollouts that a prompt's tree holds; 0 for a prompt that is not known."""
        tokens, key = as_tokens(prompt, "prompt"), as_key(key)
        with self._lock:
            entry = self._prompts.known(tokens, key)
            return 0 if entry is None else self._forest.stats(entry.tree)["kept"]

    def extend(self, session: int, tokens: TokenIds, *, context: bool = False) -> None:
        """Append generated tokens, or tool output (`context=True`: counted like prompt text).

        Raises:
            SessionClosedError: the session is closed or never existed.
            InvalidInputError: bad token ids; nothing was appended.

        """
        checked = as_tokens(tokens)
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

    def append(self, sessions: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """Append generated tokens to many sessions: session b gets `tokens[offsets[b]:offsets[b + 1]]`.

        Args:
            sessions: int64 [B], live sessions.
            tokens: int32 [n].
            offsets: int32 [B + 1].

        Raises:
            SessionClosedError, InvalidInputError: nothing was appended; as after any exception, no session of the call
                will be kept, because it lacks what was generated.

        """
        with self._whole(sessions):
            self._forest.append_batch(sessions, tokens, offsets)
            self._write_along(sessions, tokens, offsets)

    def settle(
        self, sessions: Int64Array, drafts: Drafts, rows: Int32Array, verified: Int32Array,
        tokens: Int32Array, offsets: Int32Array,
    ) -> Int32Array:  # fmt: skip
        """Judge drafts by the tokens really emitted, learn from the tokens, and append them.

        Args:
            sessions: int64 [B], live sessions.
            drafts: as filled by the core's `draft_batch`.
            rows: int32 [B], the row of each session's draft, -1 where it has none.
            verified: int32 [rows of the draft], how many nodes of each row were verified.
            tokens: int32 [n], all emitted tokens.
            offsets: int32 [B + 1], session b emitted `tokens[offsets[b]:offsets[b + 1]]`.

        Returns:
            int32 [B], accepted draft tokens.

        Raises:
            SessionClosedError, InvalidInputError: see `append`.

        """
        accepted = np.empty(len(sessions), np.int32)
        with self._whole(sessions):
            self._forest.settle(sessions, drafts, rows, verified, tokens, offsets, accepted)
            self._write_along(sessions, tokens, offsets)
        return accepted

    def _write_along(self, sessions: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        if self._journal is not None:
            self._journal.advance(sessions, tokens, offsets)

    @contextmanager
    def _whole(self, sessions: Int64Array) -> Iterator[None]:
        """Sessions whose tokens were not all taken in are never kept."""
        try:
            yield
        except BaseException:
            self._missed(sessions.tolist())
            raise
        self._keep_within()

    def _missed(self, sessions: Iterable[int]) -> None:
        with self._lock:
            self._totals.holes.update(session for session in sessions if session in self._totals.live)

    def annotate(
        self, session: int, *, sample: int | None = None, reward: float | None = None,
        logprobs: Sequence[float] | Float32Array | None = None,
    ) -> None:  # fmt: skip
        """Say what the store should know of a session's rollout besides its text; nothing without a store."""
        if self._journal is not None:
            self._journal.annotate(session, sample=sample, reward=reward, logprobs=logprobs)

    def close(self, session: int, *, keep: bool = True) -> None:
        """End a session; its rollout stays in the tree, and goes to the store, unless `keep` is False.

        Raises:
            SessionClosedError: the session is closed already or never existed.
            InvalidInputError: the store was closed; the session is, too, and its rollout in memory only.

        """
        with self._lock:
            if session not in self._totals.live:
                raise SessionClosedError(f"session {session} is closed or never existed: open a new one")
            entry = self._totals.live.pop(session)
            keep = keep and session not in self._totals.holes
            self._totals.holes.discard(session)
            self._forest.close(session, keep)
            entry.live -= 1
            self._keep_within()
            if self._journal is not None:
                self._journal.close(session, keep)

    def add(self, prompt: TokenIds, rollout: TokenIds, *, key: str | None = None, version: int | None = None) -> None:
        """Remember a finished rollout: history from a log, or text that was generated elsewhere."""
        tokens = as_tokens(rollout, "rollout")
        with self.session(prompt, key=key, version=version) as session:
            self.extend(session, tokens)

    @contextmanager
    def session(self, prompt: TokenIds, *, key: str | None = None, version: int | None = None) -> Iterator[int]:
        """Open a session for a block: `with cache.session(prompt) as s:`. It is kept unless the block raises."""
        session = self.open(prompt, key=key, version=version)
        try:
            yield session
        except BaseException:
            self.close(session, keep=False)
            raise
        self.close(session)

    def restore(self, rollout: StoredRollout) -> None:
        """Put a stored rollout into its prompt's tree; see `RolloutStore.load_into`.

        Text of a version beyond the current one counts as of the current one.
        """
        with self._lock:
            prompt, version = rollout.prompt_token_ids, self._version
            entry, start = self._prompts.find(prompt, rollout.key, version, restored=rollout)
            self._prompts.replay(entry, start, rollout, version)
            self._prompts.touch(entry)
            self._keep_within()

    def clear(self) -> None:
        """Forget everything that is held in memory, what was learned included; sums go on, old handles stay closed.

        Raises:
            InvalidInputError: sessions are still live.

        """
        with self._lock:
            if self._totals.live:
                raise InvalidInputError("sessions", len(self._totals.live), "0", "Close the live sessions first.")
            self._prompts.clear()

    def stats(self) -> CacheStats:
        """Count what is held now; O(prompts)."""
        with self._lock:
            trees = [self._forest.stats(e.tree) for e in self._prompts]
            return CacheStats(
                prompts=len(trees),
                sessions=len(self._totals.live),
                rollouts=sum(t["kept"] for t in trees),
                tokens=sum(t["tokens"] for t in trees),
                bytes=self._forest.bytes(),
                evicted_prompts=self._prompts.evicted,
                hits=self._totals.hits,
                opened=self._totals.opened,
                rebuilt_prompts=self._prompts.rebuilt,
            )

    def check(self) -> None:
        """Walk every tree.

        Raises:
            AssertionError: an invariant of the core is broken; the message names the key and the fault.

        """
        with self._lock:
            for entry in self._prompts:
                fault = self._forest.check(entry.tree)
                assert not fault, f"tree of {entry.key}: {fault}"
            fault = self._forest.check_shared()
            assert not fault, f"shared tree: {fault}"

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return self._prompts.has_key(key)

    def _keep_within(self) -> None:
        if self._prompts.is_full():
            with self._lock:
                self._prompts.make_room()
