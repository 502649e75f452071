"""The running requests as a struct of arrays: row r of every array belongs to cache row r.

Knows no model and no cache. Rows 0..count-1 are live except for the holes that finished requests left; the
scheduler fills or closes holes before each step, so every step sees live rows only. Invariant of a live row:
`tokens[r, :length]` is prompt and output, of which all but the last token are in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rolltree.engine.request import FinishReason, Request, Result
from rolltree.errors import RequestError
from rolltree.sampling import SamplingParams
from rolltree.types import Int32Array, Int64Array

NO_HANDLE = -1
OnFinish = Callable[[Result], None]


class Job:
    """A submitted request with its definite seed; what stays on the Python side while it runs."""

    __slots__ = ("id", "key", "on_finish", "prompt", "prompt_bytes", "request", "sampling", "seed")

    def __init__(self, id: int, request: Request, prompt: Int32Array, on_finish: OnFinish | None = None) -> None:
        """`prompt`: the request's prompt, checked; draws a seed if the request has none."""
        self.on_finish = on_finish
        self.id, self.request, self.key, self.prompt = id, request, request.key, prompt
        self.prompt_bytes = prompt.tobytes()
        self.sampling: SamplingParams = request.sampling.with_seed()
        self.seed = self.sampling.seed or 0


class Rows:
    """State of up to `slots` running requests."""

    def __init__(self, slots: int, max_length: int) -> None:
        self.count = 0
        self.jobs: list[Job | None] = [None] * slots
        self.cached: list[bytes | None] = [None] * slots
        """Prompt that a hole still holds in the cache, for a sibling that takes its place."""
        self.tokens: Int32Array = np.zeros((slots, max_length), np.int32)
        self.logprobs: npt.NDArray[np.float32] = np.zeros((slots, max_length), np.float32)
        self.length: Int64Array = np.zeros(slots, np.int64)
        self.prompt: Int64Array = np.zeros(slots, np.int64)
        self.end: Int64Array = np.zeros(slots, np.int64)
        self.seed: npt.NDArray[np.uint64] = np.zeros(slots, np.uint64)
        self.ready: npt.NDArray[np.bool_] = np.zeros(slots, np.bool_)
        self.handle: Int64Array = np.full(slots, NO_HANDLE, np.int64)
        self.steps: Int64Array = np.zeros(slots, np.int64)
        self.drafted: Int64Array = np.zeros(slots, np.int64)
        self.stop: Int32Array = np.full((slots, 1), -1, np.int32)
        self.max_length = max_length

    def place(self, row: int, job: Job) -> None:
        """Start `job` in `row`."""
        n = len(job.prompt)
        self.ready[row] = self.cached[row] == job.prompt_bytes
        self.cached[row] = None
        self.tokens[row, :n] = job.prompt
        self.length[row] = self.prompt[row] = n
        self.end[row] = min(n + job.sampling.max_tokens, self.max_length)
        self.seed[row] = job.seed
        self.handle[row], self.steps[row], self.drafted[row] = NO_HANDLE, 0, 0
        self._set_stop(row, job.sampling.stop_token_ids)
        self.jobs[row] = job  # last: an interrupt leaves the row whole, or a hole

    def _set_stop(self, row: int, ids: tuple[int, ...]) -> None:
        if len(ids) > self.stop.shape[1]:
            self.stop = np.pad(self.stop, ((0, 0), (0, len(ids) - self.stop.shape[1])), constant_values=-1)
        self.stop[row] = -1
        self.stop[row, : len(ids)] = ids

    def move(self, source: int, target: int) -> None:
        """Copy a row over another one."""
        n = self.length[source]
        self.cached[target] = self.cached[source] = None
        self.tokens[target, :n] = self.tokens[source, :n]
        self.logprobs[target, :n] = self.logprobs[source, :n]
        state = (self.length, self.prompt, self.end, self.seed, self.ready, self.handle, self.steps, self.drafted)
        for array in (*state, self.stop):
            array[target] = array[source]
        self.jobs[target], self.jobs[source] = self.jobs[source], None  # last, as in `place`

    def job(self, row: int) -> Job:
        """The request of a live row."""
        job = self.jobs[row]
        assert job is not None
        return job

    def find(self, id: int) -> int | None:
        """The row of a request that runs; None where none does."""
        return next((row for row, job in enumerate(self.jobs) if job is not None and job.id == id), None)

    def holes(self) -> list[int]:
        """Rows below `count` without a request, ascending."""
        return [r for r in range(self.count) if self.jobs[r] is None]

    def live(self) -> list[int]:
        """Rows with a request, ascending."""
        return [r for r, job in enumerate(self.jobs) if job is not None]

    def reset(self) -> None:
        """Forget all rows."""
        self.count = 0
        self.jobs = [None] * len(self.jobs)
        self.forget_cached()
        self.ready[:] = False
        self.handle[:] = NO_HANDLE

    def forget_cached(self) -> None:
        """Let no new request take over the prompt of a finished one: the weights may have changed since."""
        self.cached = [None] * len(self.cached)

    def take(self, row: int, reason: FinishReason, error: RequestError | None) -> Result:
        """The result of a row, which becomes a hole."""
        job = self.job(row)
        self.cached[row] = job.prompt_bytes if error is None else None
        self.jobs[row], self.handle[row] = None, NO_HANDLE
        generated = slice(self.prompt[row], self.length[row])
        return Result(
            id=job.id,
            token_ids=self.tokens[row, generated].tolist(),
            logprobs=self.logprobs[row, generated].tolist(),
            finish_reason=reason,
            prompt_token_ids=job.prompt.tolist(),
            steps=int(self.steps[row]),
            drafted=int(self.drafted[row]),
            seed=job.seed,
            error=error,
        )
