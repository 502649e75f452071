"""Requests between `submit` and the caller: those that wait for a row, those not delivered yet, results to fetch.

Knows no rows. Invariant: each submitted request is delivered exactly once, as a result to fetch or to its `on_finish`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from rolltree.engine.request import FinishReason, Request, Result, unstarted
from rolltree.engine.running import Job, OnFinish
from rolltree.errors import RequestError
from rolltree.types import Int32Array


class Queue:
    """All requests of an engine that have not come back yet."""

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        """Oldest first."""
        self.next_id = 0
        self._pending: dict[int, Job] = {}
        self._finished: list[Result] = []

    def new_id(self) -> int:
        """Id of the next request."""
        id, self.next_id = self.next_id, self.next_id + 1
        return id

    def add(self, id: int, request: Request, prompt: Int32Array, on_finish: OnFinish | None) -> None:
        """Let a request wait for a row."""
        job = Job(id, request, prompt, on_finish)
        self._pending[id] = job
        self.waiting.append(job)

    def deliver(self, result: Result, on_finish: OnFinish | None) -> None:
        """Hand a result over."""
        self._pending.pop(result.id, None)
        if on_finish is None:
            self._finished.append(result)
        else:
            on_finish(result)

    def refuse(self, id: int, request: Request, error: RequestError, on_finish: OnFinish | None) -> None:
        """Deliver a request that cannot run."""
        self.deliver(unstarted(id, request, "error", error), on_finish)

    def withdraw(self, id: int) -> bool:
        """Abort a request that waits; False if none does."""
        for job in self.waiting:
            if job.id == id:
                self.waiting.remove(job)
                self._unstarted(job, "abort")
                return True
        return False

    def abandon(self) -> None:
        """Abort all that was not delivered."""
        self.waiting.clear()
        for job in list(self._pending.values()):
            self._unstarted(job, "abort")

    def _unstarted(self, job: Job, reason: FinishReason) -> None:
        self.deliver(unstarted(job.id, job.request, reason), job.on_finish)

    def fetch(self) -> list[Result]:
        """Results since the last call."""
        done, self._finished = self._finished, []
        return done

    def put_back(self, results: list[Result]) -> None:
        """Results that were fetched for somebody else."""
        self._finished = results + self._finished

    def forget(self, ids: Collection[int]) -> None:
        """Drop results that nobody will fetch."""
        self._finished = [result for result in self._finished if result.id not in ids]

    @property
    def to_return(self) -> int:
        """Requests whose result `fetch` has not returned, of those that it will return."""
        return sum(job.on_finish is None for job in self._pending.values()) + len(self._finished)
