"""Calls to the vLLM servers of a verl run, bounded in time: a server that does not answer costs a number, not a run.

verl's own `collective_rpc` drops the results, so the call is made inside the server's actor (Ray's `__ray_call__`,
which has a thread of its own there) on the actor's event loop. Owns no server; finds them by the names under which
verl's own trainer looks them up.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import ray

log = logging.getLogger("rolltree.verl")

SERVER_NAME = re.compile(r"vllm_server_(\d+)_0$")
"""Rollout replica and first node; the servers of reward models and teachers have other names."""
WORKER_METHOD = "rolltree"
"""What `rolltree.vllm` adds to vLLM's workers."""
GRACE_SECONDS = 1.0
"""For Ray to bring back an answer that came just in time."""
LONGEST_REST = 63
"""Calls that a server is spared at most after it failed several times in a row."""


class Servers:
    """The vLLM servers of this run's rollouts, one a replica."""

    def __init__(self, handles: Sequence[Any], *, timeout: float) -> None:
        self.handles, self.timeout = list(handles), timeout
        self.failures = 0
        """Calls to one server that failed or took too long."""
        self._in_a_row = [0] * len(self.handles)
        self._rest = [0] * len(self.handles)

    @classmethod
    def find(cls, *, timeout: float) -> Servers:
        """Look up the servers by name; none before verl has started them."""
        names = [entry if isinstance(entry, str) else entry["name"] for entry in ray.util.list_named_actors()]
        ranked = sorted((int(found[1]), name) for name in names if (found := SERVER_NAME.match(name)))
        return cls([ray.get_actor(name) for _, name in ranked], timeout=timeout)

    def call(self, command: str, *args: Any) -> list[Any]:
        """Run a command of `rolltree.vllm` on every server.

        Returns:
            One result a server, in order of rank; None where it failed, took longer than the time-out, or drafts with
            something else. Such a call is given up, not waited for.
        """
        return [_answer(reply) for reply in self._everywhere(command_workers, (self.timeout, command, *args))]

    def each(self, work: Callable[..., Awaitable[Any]], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Await `work(server, *arguments[i])` on the event loop of the i-th server, side by side.

        A server that fails again and again is left alone for 1, 3, 7, ... calls, so that the trainer does not wait a
        time-out in each step for what is gone.

        Returns:
            One result a server; None where it failed, took longer than the time-out, or was left alone.
        """
        calls = [self._ask(index, work, args) for index, args in enumerate(arguments)]
        deadline = time.monotonic() + self.timeout + GRACE_SECONDS
        return [None if call is None else self._fetch(index, call, deadline) for index, call in enumerate(calls)]

    def counters(self) -> list[dict[str, float] | None]:
        """Return the counters of each server since its start, and its step-cost model as `cost_…` once it has one."""
        pairs = [reply or ((), ()) for reply in self._everywhere(count_workers, (self.timeout,))]
        answers = [(_answer(stats), _answer(cost)) for stats, cost in pairs]
        return [
            stats and {**stats, **{f"cost_{name}": value for name, value in (cost or {}).items()}}
            for stats, cost in answers
        ]

    def _everywhere(self, work: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> list[Any]:
        return self.each(work, [arguments] * len(self.handles))

    def _ask(self, index: int, work: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> Any:
        self._rest[index] -= 1
        if self._rest[index] >= 0:
            return None
        try:
            return self.handles[index].__ray_call__.remote(run_in_server, self.timeout, work, arguments)
        except Exception as error:  # Ray knows already that the actor is gone
            return self._failed(index, error)

    def _fetch(self, index: int, call: Any, deadline: float) -> Any:
        try:
            answer = ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
        except Exception as error:  # a dead actor, a time-out, the engine's own error: all cost this answer only
            return self._failed(index, error)
        self._in_a_row[index] = 0
        return answer

    def _failed(self, index: int, error: Exception) -> None:
        if not self.failures:
            log.warning("A call to a vLLM server failed; counted from now on, logged once: %r", error)
        self.failures += 1
        self._in_a_row[index] += 1
        self._rest[index] = min(2 ** (self._in_a_row[index] - 1) - 1, LONGEST_REST)


def run_in_server(server: Any, timeout: float, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
    """Runs in a thread of the server's actor: the result of `work(server, *args)` on the actor's event loop.

    Raises:
        TimeoutError: it took longer than `timeout` seconds; the call is taken back.
    """
    future = asyncio.run_coroutine_threadsafe(_awaited(work(server, *args)), server._server_task.get_loop())
    try:
        return future.result(timeout)
    finally:
        future.cancel()


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def command_workers(server: Any, timeout: float, command: str, *args: Any) -> list[Any]:
    """Send a command to the engine's workers; the one that drafts replies, the others with None."""
    return list(await server.engine.collective_rpc(WORKER_METHOD, timeout=timeout, args=(command, *args)))


async def count_workers(server: Any, timeout: float) -> list[list[Any]]:
    """Ask the engine's workers for their counters and for the step-cost model."""
    return [await command_workers(server, timeout, command) for command in ("stats", "cost")]


def _answer(replies: Sequence[Any] | None) -> Any:
    """Return what the worker that drafts replied, None where there was no reply or nobody drafts with rolltree."""
    return next((reply["answer"] for reply in replies or () if reply is not None), None)
