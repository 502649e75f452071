"""Trees made again from the store: read and built beside the forest, in a thread or at once, and then taken in.

A tree that is made for a prompt may lack what the store knows of it. `Rebuilds` reads that, builds a history of it
without any lock, and gives it to the tree, whose sessions go on meanwhile and then draft from it, too. Prompts that
are `expected` get a tree only if the store knows them. Who has `blocking` rebuilds waits for each; then what a session
drafts from does not depend on time.

Thread-safe: all state is guarded by the cache's lock, which is held while a history is taken in (the native core does
that in slices of about a millisecond), never while one is read or built. The thread lives while there is work.

Invariants. A rollout is in its tree once: what a tree took in while its history was read is left out of that, and what
another engine tells of is not new where a history had it (`is_new`).
Requests that run come before prompts that are expected. A failure costs the history of a prompt, nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rolltree._native import Forest, History
from rolltree.types import Int32Array

if TYPE_CHECKING:
    from rolltree.store import StoredRollout
    from rolltree.store.journal import Journal

LOOKS = 4
"""Reads of a prompt's rollouts while more are being kept; then what is alike may be missing once from its tree."""
_log = logging.getLogger(__name__)
Rebuilding = Literal["blocking", "background", "never"]
"""When trees are made again: before `open` returns, in a thread of their own, or not at all."""
Lock = Any
"""A `threading.RLock`, which is no type."""


@dataclass(slots=True, eq=False)
class Wanted:
    """A prompt whose history is wanted."""

    name: str
    """Of its tree."""
    prompt: Int32Array
    """That the tree begins with."""
    key: str | None
    since: list[StoredRollout] = field(default_factory=list)
    """What the tree took in meanwhile."""


class Rebuilds:
    """What is to be made again, in which order.

    Args:
        forest: where the trees are.
        journal: asked for what the store knows; None: there is no store.
        adopted: takes a history in, making a tree where there was none; called under the lock.
        version: the policy version that generates now.
        window: rollouts of a prompt that are asked for.
        lock: the cache's.
        when: see `Rebuilding`.

    """

    def __init__(
        self, forest: Forest, journal: Journal | None, *, adopted: Callable[[Wanted, History], None],
        version: Callable[[], int], window: int, lock: Lock, when: Rebuilding,
    ) -> None:  # fmt: skip
        self._forest, self._journal, self._adopted, self._version = forest, journal, adopted, version
        self.when: Rebuilding = "never" if journal is None else when
        self._window = min(window, forest.most_adopted())
        self._lock, self._idle = lock, threading.Condition(lock)
        self._wanted: OrderedDict[str, Wanted] = OrderedDict()
        self._told: dict[str, list[int]] = {}  # check values of what came by the history of each tree
        self._thread: threading.Thread | None = None
        self.failed = 0
        """Histories that could not be made, for another reason than the store's."""

    def __len__(self) -> int:
        return len(self._wanted)

    def now(
        self, name: str, prompt: Int32Array, key: str | None, since: Sequence[StoredRollout]
    ) -> tuple[Int32Array, History | None]:
        """Return the first prompt that the store knows (`prompt` if none), and the history without `since`.

        None where nothing is known, or `open` does not wait.
        """
        found = self._read(prompt, key) if self.when == "blocking" else []
        known = _without(found, since)
        first = known[0].prompt_token_ids if known else prompt
        self._note(name, known)
        return first, self._build(first, known, self._version())

    def want(self, name: str, prompt: Int32Array, key: str | None) -> None:
        """A tree was made, which may have a history."""
        if self.when != "background":
            return
        wanted = self._wanted.get(name)
        if wanted is None or not np.array_equal(wanted.prompt, prompt):  # expected, with another prompt of the key
            wanted = self._wanted[name] = Wanted(name, prompt.copy(), key)
        self._wanted.move_to_end(name, last=False)
        self._run_thread()

    def expect(self, name: str, prompt: Int32Array, key: str | None) -> None:
        """A prompt without a tree is coming; nothing is done for it where `open` waits anyway."""
        if self.when == "background" and name not in self._wanted:
            self._wanted[name] = Wanted(name, prompt.copy(), key)
            self._run_thread()

    def took_in(self, name: str, rollout: StoredRollout) -> None:
        """A tree holds one more rollout."""
        if wanted := self._wanted.get(name):
            wanted.since.append(rollout)

    def is_new(self, name: str, rollout: StoredRollout) -> bool:
        """Whether a tree has not got, by its history, what another engine tells of; then it takes it in."""
        content, told = hash(_content(rollout)), self._told.get(name, [])
        if content in told:
            told.remove(content)  # the next one that is alike is another
            return False
        self.took_in(name, rollout)
        return True

    def forget(self, name: str) -> None:
        """A tree is gone."""
        self._wanted.pop(name, None)
        self._told.pop(name, None)

    def clear(self) -> None:
        """All trees are gone, and nothing is expected."""
        self._wanted.clear()
        self._told.clear()

    def wait(self) -> None:
        """Return when nothing is wanted any more."""
        with self._idle:
            self._idle.wait_for(lambda: self._thread is None or not self._thread.is_alive())

    def _run_thread(self) -> None:
        if self._thread is not None and self._thread.is_alive():  # after a fork it is not
            return
        self._thread = threading.Thread(target=self._run, name="rolltree-rebuild", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no more threads
            self._thread = None
            self._wanted.clear()
            self._fail(error)

    def _run(self) -> None:
        while wanted := self._next():
            try:
                self._make(wanted)
            except Exception as error:
                self._fail(error)
            finally:
                with self._lock:
                    if self._wanted.get(wanted.name) is wanted:
                        del self._wanted[wanted.name]

    def _make(self, wanted: Wanted) -> None:
        known, version = self._found(wanted)
        history = self._build(wanted.prompt, known, version)
        with self._lock:
            if history is not None and self._wanted.get(wanted.name) is wanted:  # else its tree is gone
                self._adopted(wanted, history)
                self._note(wanted.name, known)

    def _found(self, wanted: Wanted) -> tuple[list[StoredRollout], int]:
        """What the store knows besides what the tree holds, and the version that generates now.

        Rollouts are told apart by their content, and those of a prompt may be alike: so what the tree took in must be
        among those that are read, and what came while they were read makes for another look.
        """
        for _ in range(LOOKS):
            with self._lock:
                before = len(wanted.since)
            found = self._read(wanted.prompt, wanted.key)
            with self._lock:
                if len(wanted.since) == before:
                    break
        with self._lock:
            return _without(found, wanted.since), self._version()

    def _note(self, name: str, known: Sequence[StoredRollout]) -> None:
        if known:
            self._told[name] = [hash(_content(rollout)) for rollout in known]

    def _next(self) -> Wanted | None:
        with self._lock:
            if self._wanted:
                return next(iter(self._wanted.values()))
            self._thread = None
            self._idle.notify_all()
            return None

    def _read(self, prompt: Int32Array, key: str | None) -> list[StoredRollout]:
        return [] if self._journal is None else self._journal.earlier(prompt, key, self._window)

    def _build(self, prompt: Int32Array, known: list[StoredRollout], version: int) -> History | None:
        try:
            return _history(self._forest, prompt, known, version) if known else None
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        self.failed += 1
        if self.failed & (self.failed - 1) == 0:
            _log.warning("A tree is left without its history (%d so far): %r", self.failed, error)


def _without(found: list[StoredRollout], held: Sequence[StoredRollout]) -> list[StoredRollout]:
    """What was `found`, oldest first, without what is `held` already: each once, from the newest on."""
    if not held:
        return found
    more = [_content(rollout) for rollout in held]
    rest: list[StoredRollout] = []
    for rollout in reversed(found):
        content = _content(rollout)
        if content in more:
            more.remove(content)
        else:
            rest.append(rollout)
    return rest[::-1]


def _content(rollout: StoredRollout) -> tuple[int, bytes]:
    return rollout.version, np.ascontiguousarray(rollout.token_ids, np.int32).tobytes()


def _history(forest: Forest, prompt: Int32Array, known: Sequence[StoredRollout], version: int) -> History:
    """Build a tree of rollouts, oldest first; versions beyond `version` count as of it."""
    history = forest.history(prompt, min(known[0].version, version))
    for rollout in known:
        own = rollout.prompt_token_ids
        follows = len(own) >= len(prompt) and np.array_equal(own[: len(prompt)], prompt)
        history.open(min(rollout.version, version), follows)
        quoted = own[len(prompt) :] if follows else own
        if len(quoted):
            history.append(quoted, True)
        for tokens, context in rollout.segments():
            history.append(tokens, context)
    return history
