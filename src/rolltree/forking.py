"""Locks that a forked child can use: they are taken before the fork, in one order, and given back on both sides.

A child has only the thread that forked: whatever another thread held at that moment nobody would release there, and
what it was changing would stay half changed. The core does the same for its own locks (native/fork_guard.h).

Invariants: a fork waits a bounded time for each lock; whose lock was not to be had is refused in the child, by name,
and never waited for. Locks are taken in the order in which calls take them: a cache's before those of its store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

from rolltree.errors import InvalidInputError

SECONDS = 5.0
"""How long a fork waits for a lock."""
CACHES, STORES = 0, 1
"""The order in which what belongs to them is taken."""
Call = Callable[[], None]
_Hooks = tuple[int, Call, Call, Call]


class Owner(Protocol):
    """Who has a lock that is taken before a fork."""

    _lock: Any


class _Refused:
    """In a child, the lock of what another thread was using at the fork."""

    def __enter__(self) -> None:
        fix = "Fork while no thread uses it, start the process by spawn, or make a new one in the child."
        raise InvalidInputError("cache", "in use", "one that no other thread was using when this process forked", fix)

    def __exit__(self, *_: object) -> None:
        """Never reached."""


_hooks: list[_Hooks] = []
_owners: WeakSet[Any] = WeakSet()
_registering = threading.RLock()  # nobody is added while a process forks
_fork = threading.local()  # what the forking thread holds


def at_fork(order: int, before: Call, in_parent: Call, in_child: Call) -> None:
    """Have these called around each fork; `before` in order, the others in reverse. They must not raise."""
    _hooks.append((order, before, in_parent, in_child))
    _hooks.sort(key=lambda hooks: hooks[0])


def guard(owner: Owner) -> None:
    """Take the `_lock` of an owner before each fork, for as long as the owner lives."""
    with _registering:
        _owners.add(owner)


def _before() -> None:
    _fork.registering = _registering.acquire(timeout=SECONDS)
    tried = [(owner, owner._lock.acquire(timeout=SECONDS)) for owner in list(_owners)]
    _fork.held = [owner for owner, held in tried if held]
    _fork.missed = [owner for owner, held in tried if not held]


def _in_parent() -> None:
    for owner in _fork.held:
        owner._lock.release()
    if _fork.registering:
        _registering.release()
    _fork.__dict__.clear()


def _in_child() -> None:
    global _registering
    for owner in _fork.held:
        owner._lock.release()
    for owner in _fork.missed:
        owner._lock = _Refused()
    _registering = threading.RLock()
    _fork.__dict__.clear()


def _all_before() -> None:
    for _, before, _, _ in _hooks:
        before()


def _all_in_parent() -> None:
    for _, _, in_parent, _ in reversed(_hooks):
        in_parent()


def _all_in_child() -> None:
    for _, _, _, in_child in reversed(_hooks):
        in_child()


at_fork(CACHES, _before, _in_parent, _in_child)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_all_before, after_in_parent=_all_in_parent, after_in_child=_all_in_child)
