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


class Servers:
    """The vLLM servers of this run's rollouts, one a replica."""

    def __init__(self, handles: Sequence[Any], *, timeout: float) -> None:
        self.handles, self.timeout = list(handles), timeout
        self.failures = 0
        """Calls to one server that failed or took too long."""

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
        replies = self.each(command_workers, [(self.timeout, command, *args)] * len(self.handles))
        return [next((r["answer"] for r in reply or () if r is not None), None) for reply in replies]

    def each(self, work: Callable[..., Awaitable[Any]], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Await `work(server, *arguments[i])` on the event loop of the i-th server, side by side.

        Returns:
            One result a server; None where it failed or took longer than the time-out.
        """
        calls = [
            handle.__ray_call__.remote(run_in_server, self.timeout, work, args)
            for handle, args in zip(self.handles, arguments, strict=True)
        ]
        deadline = time.monotonic() + self.timeout + GRACE_SECONDS
        return [self._fetch(call, deadline) for call in calls]

    def counters(self) -> list[dict[str, float] | None]:
        """Return the counters of each server since its start, and its step-cost model as `cost_…` once it has one."""
        counted, costs = self.call("stats"), self.call("cost")
        return [
            stats and {**stats, **{f"cost_{name}": value for name, value in (cost or {}).items()}}
            for stats, cost in zip(counted, costs, strict=True)
        ]

    def _fetch(self, call: Any, deadline: float) -> Any:
        try:
            return ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
        except Exception as error:  # a dead actor, a time-out, the engine's own error: all cost this answer only
            if not self.failures:
                log.warning("A call to a vLLM server failed; counted from now on, logged once: %r", error)
            self.failures += 1
            return None


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
