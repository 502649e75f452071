"""The only owner of trees and of policy versions: prompts and sessions open and close here, within a capacity.

Which tree belongs to which prompt is in `prompts`, what sessions take in and draft in `sessions`. Thread-safe. Does not
decide what to draft (see `drafting`). With a store, closing a kept session commits its rollout there, and a prompt that
is not held (evicted, or from before a restart) is rebuilt from there (see `rebuilding`).

Invariants. After every call the prompts' own trees are within their part of `capacity_bytes` or being made smaller:
idle prompts are evicted, least recently used first; then prompts with live sessions lose their oldest rollouts. A
prompt with live sessions is never evicted, and no own tree makes room for the shared one, which has a part of its own.
A session with a hole is never kept, however it is closed. What the store holds changes drafts, never rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rolltree._native import Forest
from rolltree.config import CacheConfig
from rolltree.errors import InvalidInputError, SessionClosedError
from rolltree.metrics import CacheStats
from rolltree.prompts import PromptTable
from rolltree.rebuilding import Rebuilding, Rebuilds
from rolltree.sessions import Sessions
from rolltree.tokens import as_integer, as_key, as_tokens, as_version
from rolltree.types import TokenIds

if TYPE_CHECKING:
    from rolltree.store import RolloutStore, StoredRollout
    from rolltree.store.journal import Journal

_ANY_SEED = 2**64


class RolloutCache(Sessions):
    """Trees of earlier and running rollouts, one a prompt.

    Args:
        config: what is remembered, how long, and how much memory it may take.
        store: where kept rollouts are committed, and forgotten prompts come back from; None remembers in memory only.
        rebuild: when these come back: `blocking`, before `open` returns, so that drafts do not depend on time;
            `background`, in a thread: a session begins without and has it once it is there; `never`.

    """

    def __init__(
        self, config: CacheConfig | None = None, *, store: RolloutStore | None = None, rebuild: Rebuilding = "blocking"
    ) -> None:  # fmt: skip
        self.config = config = config or CacheConfig()
        self.store = store
        shared = int(config.capacity_bytes * config.shared_fraction) if config.shared_window else 0
        own = config.capacity_bytes - shared
        forest = Forest(
            depth=config.depth, window=config.window, decay=config.decay,
            context_weight=max(1, round(64 * config.context_weight)), shared_window=config.shared_window,
            own_bytes=own, shared_bytes=shared,
        )  # fmt: skip
        if config.threads:
            forest.set_threads(config.threads)
        super().__init__(forest, None if store is None else _journal(store))
        self._version = 0
        self._opened = self._hits = 0
        rebuilds = partial(
            Rebuilds, forest, self._journal, version=lambda: self._version, window=config.window, lock=self._lock,
            when=rebuild,
        )  # fmt: skip
        self._prompts = PromptTable(forest, own_bytes=own, rebuilds=rebuilds)

    @property
    def version(self) -> int:
        """Version of the policy that generates now: owned here alone.

        A trainer announces it with `set_version`, a request through the one it was made for; sessions, rollouts and
        stores hold the version that generated them, and whoever else needs to know asks here.
        """
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
        foreign: bool = False,
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
            foreign: another engine generates the text, which is neither committed nor told to listeners here.

        Returns:
            A handle, never re-used.

        Raises:
            InvalidInputError: bad token ids, key, version or seed.

        """
        tokens, key = as_tokens(prompt, "prompt"), as_key(key)
        wanted = None if version is None else as_version(version)
        offset = None if murmur3_offset is None else as_integer(murmur3_offset, "murmur3_offset", 0, _ANY_SEED - 1)
        noise = 0 if seed is None else as_integer(seed, "seed", -_ANY_SEED, _ANY_SEED) % _ANY_SEED
        with self._lock:
            entry, start = self._prompts.find(tokens, key, self._version)
            number = self._version if wanted is None else wanted
            self._opened += not foreign
            self._hits += not foreign and self._forest.stats(entry.tree)["kept"] > 0
            handle = self._forest.open(
                entry.tree, number, bool(read_only), start is not None, noise, bool(coupled) and seed is not None,
                bool(run_ahead), offset,
            )  # fmt: skip
            try:
                self._prompts.quote(handle, tokens, start)
                if self._journal is not None and not (read_only or run_ahead or foreign):
                    self._journal.open(handle, tokens, key, number)
            except BaseException:
                self._forest.close(handle, False)
                raise
            entry.live += 1
            self._live[handle] = entry
            self._prompts.touch(entry)
            self._keep_within()
            return handle

    def rollouts(self, prompt: TokenIds, *, key: str | None = None) -> int:
        """Count the finished rollouts that a prompt's tree holds; 0 for a prompt that is not known."""
        tokens, key = as_tokens(prompt, "prompt"), as_key(key)
        with self._lock:
            entry = self._prompts.known(tokens, key)
            return 0 if entry is None else self._forest.stats(entry.tree)["kept"]

    def close(self, session: int, *, keep: bool = True, told: StoredRollout | None = None) -> None:
        """End a session; its rollout stays in the tree, and goes to the store, unless `keep` is False.

        `told`: the whole of a foreign one, which does not stay where the tree came back from the store with it.

        Raises:
            SessionClosedError: the session is closed already or never existed.
            InvalidInputError: the store was closed; the session is, too, and its rollout in memory only.

        """
        session = as_integer(session, "session")
        with self._lock:
            if session not in self._live:
                raise SessionClosedError(f"session {session} is closed or never existed: open a new one")
            entry = self._live.pop(session)
            keep = keep and session not in self._holes and (told is None or self._prompts.is_new(entry, told))
            self._holes.discard(session)
            self._forest.close(session, keep)
            entry.live -= 1
            self._keep_within()
            if self._journal is not None and (rollout := self._journal.close(session, keep)) is not None:
                self._prompts.rebuilds.took_in(entry.key, rollout)

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

    def expect(self, prompt: TokenIds, *, key: str | None = None) -> None:
        """Say that a prompt is coming: with `background` its tree, if it has none, is rebuilt now from the store.

        Announce the policy's version first: text of a later one counts as of it. Errors as `open`.
        """
        tokens, key = as_tokens(prompt, "prompt"), as_key(key)
        with self._lock:
            self._prompts.expect(tokens, key)

    def wait(self) -> None:
        """Return when every tree that is being rebuilt is there."""
        self._prompts.rebuilds.wait()

    def restore(self, rollout: StoredRollout, *, alone: bool = True) -> None:
        """Put a rollout into its prompt's tree that is in the store, or that another process told of.

        It is neither committed nor told to listeners; a later version counts as the current one. `alone`: a prompt that
        has no tree gets nothing else of the store.
        """
        with self._lock:
            prompt, version = rollout.prompt_token_ids, min(rollout.version, self._version)
            entry, start = self._prompts.find(prompt, rollout.key, version, since=None if alone else (rollout,))
            self._prompts.replay(entry, start, rollout, version)
            self._prompts.rebuilds.took_in(entry.key, rollout)
            self._prompts.touch(entry)
            self._keep_within()

    def listen(self, listener: Callable[[StoredRollout], None]) -> None:
        """Have `listener` called with each rollout that is kept from now on, in the thread that closes its session.

        It is called under the cache's lock and must be quick. What it raises is logged and counted, and reaches nobody.
        Not told: rollouts of sessions that were open before the first listener came, unless there is a store.
        """
        with self._lock:
            if self._journal is None:
                self._journal = _journal(None)
            self._journal.listeners.append(listener)

    def clear(self) -> None:
        """Forget everything that is held in memory, what was learned included; sums go on, old handles stay closed.

        Raises:
            InvalidInputError: sessions are still live.

        """
        with self._lock:
            if self._live:
                raise InvalidInputError("sessions", len(self._live), "0", "Close the live sessions first.")
            self._prompts.clear()

    def stats(self) -> CacheStats:
        """Count what is held now; O(prompts)."""
        with self._lock:
            trees = [self._forest.stats(e.tree) for e in self._prompts]
            return CacheStats(
                prompts=len(trees),
                sessions=len(self._live),
                rollouts=sum(t["kept"] for t in trees),
                tokens=sum(t["tokens"] for t in trees),
                bytes=self._forest.bytes(),
                evicted_prompts=self._prompts.evicted,
                hits=self._hits,
                opened=self._opened,
                rebuilt_prompts=self._prompts.rebuilt,
                waiting_prompts=len(self._prompts.rebuilds),
            )

    def check(self) -> None:
        """Walk every tree.

        Raises:
            AssertionError: an invariant of the core is broken; the message names the key and the fault.

        """
        with self._lock:
            self._prompts.check()

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return self._prompts.has_key(key)

    def _keep_within(self) -> None:
        if self._prompts.is_full():
            with self._lock:
                self._prompts.make_room()


def _journal(store: RolloutStore | None) -> Journal:
    from rolltree.store.journal import Journal  # for those alone who have a store or listen

    return Journal(store)
