"""The only owner of trees: prompt key -> tree, the shared tree, sessions, policy versions, byte cap and eviction.

Keys are the prompt's own tokens (hashed; the tree holds the prompt, so a collision is detected) or the user's id.
Thread-safe. Does not decide what is worth drafting (see `drafting`). With a store, closing a kept session commits its
rollout there, and a prompt that is not held (evicted, or from before a restart) is rebuilt from there when opened.

Invariants: a prompt with live sessions is never evicted; eviction happens only when a session opens or closes, least
recently used first. Running rollouts are measured anew about once per as many opens and closes as there are sessions.
What the store holds changes drafts, never rollouts; a store that fails is gone without.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from rolltree._native import Forest
from rolltree.config import CacheConfig
from rolltree.errors import InvalidInputError, SessionClosedError
from rolltree.metrics import CacheStats
from rolltree.store import RolloutStore, StoredRollout
from rolltree.store.journal import Journal
from rolltree.tokens import as_key, as_tokens
from rolltree.types import Float32Array, Int32Array, Int64Array, TokenIds


@dataclass(slots=True)
class _Entry:
    key: str
    tree: int
    live: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Totals:
    opened: int = 0
    rebuilt: int = 0
    hits: int = 0
    evicted: int = 0
    bytes: int = 0
    shared: int = 0
    stale: int = 0
    live: dict[int, _Entry] = field(default_factory=dict)


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
        self._reset()

    def _reset(self) -> None:
        self._totals = _Totals()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._forest = Forest(
            depth=self.config.depth,
            window=self.config.window,
            decay=self.config.decay,
            context_weight=max(1, round(64 * self.config.context_weight)),
            shared_window=self.config.shared_window,
        )
        if self.config.threads:
            self._forest.set_threads(self.config.threads)

    @property
    def forest(self) -> Forest:
        """The native core, for batch calls over session handles."""
        return self._forest

    @property
    def version(self) -> int:
        """Version of the policy that generates now."""
        return self._version

    @property
    def prompts(self) -> int:
        """Prompts with a tree; O(1)."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes of all trees as of the latest open or close; O(1)."""
        return self._totals.bytes + self._totals.shared

    def set_version(self, version: int) -> None:
        """Announce a policy update; text of older versions counts less from now on.

        Raises:
            InvalidInputError: a version below the current one.

        """
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

        Returns:
            A handle, never re-used.

        Raises:
            InvalidInputError: bad token ids.

        """
        tokens, key = as_tokens(prompt, "prompt"), as_key(key)
        with self._lock:
            entry, shared = self._find(tokens, key)
            number = self._version if version is None else version
            self._totals.opened += 1
            self._totals.hits += self._forest.stats(entry.tree)["kept"] > 0
            handle = self._forest.open(
                entry.tree,
                number,
                read_only,
                shared > 0,
                (seed or 0) % 2**64,
                coupled and seed is not None,
                run_ahead,
            )
            if shared < len(tokens):  # another turn or another prompt under the user's key
                self._forest.append(handle, tokens[shared:], True)
            if self._journal is not None and not (read_only or run_ahead):
                self._journal.open(handle, tokens, key, number)
            entry.live += 1
            self._totals.live[handle] = entry
            self._entries.move_to_end(entry.key)
            self._settle_bytes(entry)
            return handle

    def rollouts(self, prompt: TokenIds, *, key: str | None = None) -> int:
        """Count the finished rollouts that a prompt's tree holds; 0 for a prompt that is not known."""
        key = as_key(key)
        name = _digest(as_tokens(prompt, "prompt")) if key is None else f"user:{key}"
        with self._lock:
            entry = self._entries.get(name)
            return 0 if entry is None else self._forest.stats(entry.tree)["kept"]

    def extend(self, session: int, tokens: TokenIds, *, context: bool = False) -> None:
        """Append generated tokens, or tool output (`context=True`: counted like prompt text).

        Raises:
            SessionClosedError: the session is closed or never existed.
            InvalidInputError: bad token ids; nothing was appended.

        """
        checked = as_tokens(tokens)
        self._forest.append(session, checked, context)
        if self._journal is not None:
            self._journal.extend(session, checked, context)

    def advanced(self, sessions: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """Hear of tokens that were given to `forest` in a batch: session b got tokens[offsets[b]:offsets[b + 1]]."""
        if self._journal is not None:
            self._journal.advance(sessions, tokens, offsets)

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
            self._forest.close(session, keep)
            entry.live -= 1
            self._settle_bytes(entry)
            if self._journal is not None:
                self._journal.close(session, keep)

    def add(self, prompt: TokenIds, rollout: TokenIds, *, key: str | None = None, version: int | None = None) -> None:
        """Remember a finished rollout: history from a log, or text that was generated elsewhere."""
        tokens = as_tokens(rollout, "rollout")
        session = self.open(prompt, key=key, version=version)
        self.extend(session, tokens)
        self.close(session)

    def restore(self, rollout: StoredRollout) -> None:
        """Put a stored rollout into its prompt's tree; see `RolloutStore.load_into`.

        Text of a version beyond the current one counts as of the current one.
        """
        with self._lock:
            entry, shared = self._find(rollout.prompt_token_ids, rollout.key, restored=rollout)
            self._replay(entry, shared, rollout)
            self._entries.move_to_end(entry.key)
            self._settle_bytes(entry)

    def clear(self) -> None:
        """Forget everything that is held in memory.

        Raises:
            InvalidInputError: sessions are still live.

        """
        with self._lock:
            if self._totals.live:
                raise InvalidInputError("sessions", len(self._totals.live), "0", "Close the live sessions first.")
            self._reset()

    def stats(self) -> CacheStats:
        """Count what is held now; O(prompts)."""
        with self._lock:
            trees = [self._forest.stats(e.tree) for e in self._entries.values()]
            return CacheStats(
                prompts=len(trees),
                sessions=len(self._totals.live),
                rollouts=sum(t["kept"] for t in trees),
                tokens=sum(t["tokens"] for t in trees),
                bytes=sum(t["bytes"] for t in trees) + self._forest.shared_stats()["bytes"],
                evicted_prompts=self._totals.evicted,
                hits=self._totals.hits,
                opened=self._totals.opened,
                rebuilt_prompts=self._totals.rebuilt,
            )

    def check(self) -> None:
        """Walk every tree.

        Raises:
            AssertionError: an invariant of the core is broken; the message names the key and the fault.

        """
        with self._lock:
            for entry in self._entries.values():
                fault = self._forest.check(entry.tree)
                assert not fault, f"tree of {entry.key}: {fault}"
            fault = self._forest.check_shared()
            assert not fault, f"shared tree: {fault}"

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return f"user:{key}" in self._entries

    def _find(
        self, prompt: Int32Array, key: str | None, *, restored: StoredRollout | None = None
    ) -> tuple[_Entry, int]:
        """Return the prompt's entry, new if need be, and how many tokens of `prompt` its tree starts with.

        A new tree gets what the store knows of the prompt, unless it is made for a rollout that is being `restored`.
        """
        name = _digest(prompt) if key is None else f"user:{key}"
        while (entry := self._entries.get(name)) is not None:
            shared, whole = self._forest.shared_prefix(entry.tree, prompt)
            if key is not None:
                return entry, (shared or 1) if shared == whole else 0
            if shared == whole == len(prompt):
                return entry, len(prompt) or 1
            name += "'"  # another prompt with the same hash
        known = [] if restored or not self._journal else self._journal.earlier(prompt, key, self.config.window)
        first = known[0] if known else restored
        self._add_entry(name, prompt if first is None else first.prompt_token_ids, first)
        for rollout in known:
            entry, shared = self._find(rollout.prompt_token_ids, key)
            self._replay(entry, shared, rollout)
        self._totals.rebuilt += bool(known)
        return self._find(prompt, key)

    def _replay(self, entry: _Entry, shared: int, rollout: StoredRollout) -> None:
        prompt = rollout.prompt_token_ids
        handle = self._forest.open(entry.tree, min(rollout.version, self._version), False, shared > 0, 0, False)
        if shared < len(prompt):
            self._forest.append(handle, prompt[shared:], True)
        for tokens, context in rollout.segments():
            self._forest.append(handle, tokens, context)
        self._forest.close(handle, True)

    def _add_entry(self, name: str, prompt: Int32Array, first: StoredRollout | None) -> _Entry:
        """Make a tree; its weights are those of a tree that was made for the rollout `first`."""
        version = self._version if first is None else min(first.version, self._version)
        entry = _Entry(name, self._forest.add_tree(prompt, version))
        self._entries[name] = entry
        return entry

    def _settle_bytes(self, entry: _Entry) -> None:
        self._measure(entry)
        self._totals.stale += 1
        if self._totals.stale >= len(self._totals.live):  # running rollouts grow between calls; amortised O(1)
            self._totals.stale = 0
            for running in {e.key: e for e in self._totals.live.values()}.values():
                self._measure(running)
        self._totals.shared = self._forest.shared_stats()["bytes"]
        if self._over_capacity():
            self._evict()

    def _over_capacity(self) -> bool:
        return self._totals.bytes + self._totals.shared > self.config.capacity_bytes

    def _measure(self, entry: _Entry) -> None:
        now = self._forest.stats(entry.tree)["bytes"]
        self._totals.bytes += now - entry.bytes
        entry.bytes = now

    def _evict(self) -> None:
        for name in [n for n, e in self._entries.items() if not e.live]:
            if not self._over_capacity():
                return
            entry = self._entries.pop(name)
            self._forest.remove_tree(entry.tree)
            self._totals.bytes -= entry.bytes
            self._totals.evicted += 1


def _digest(prompt: Int32Array) -> str:
    return f"{len(prompt)}:{hashlib.blake2b(prompt.tobytes(), digest_size=16).hexdigest()}"
