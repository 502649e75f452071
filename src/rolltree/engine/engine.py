"""The built-in engine: continuous batching over a Hugging Face causal LM with exact speculative decoding.

`step()` is schedule, run, postprocess; everything else is a call away. The engine owns requests and rows; it
neither drafts (a `Drafter` does), nor knows acceptance rules (`rolltree.sampling` does), nor changes the
model, which may be in training: attention and mode are switched for the duration of a call. Not thread-safe.
Invariant: with the coupled rule a rollout is a function of (weights, prompt, sampling settings, seed) alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rolltree.engine.admission import close_holes, prefill, seat
from rolltree.engine.config import EngineConfig
from rolltree.engine.drafts import Drafts, DraftSource
from rolltree.engine.emit import Emission, emit
from rolltree.engine.families import DEFAULT_LENGTH, ModelShape
from rolltree.engine.intake import checked_prompt
from rolltree.engine.learner import CostLearner
from rolltree.engine.recorder import Recorder
from rolltree.engine.request import FinishReason, Request, Result, unstarted
from rolltree.engine.rows import Job, OnFinish, Rows
from rolltree.engine.runner import Runner, is_out_of_memory
from rolltree.engine.slots import SlotCache
from rolltree.engine.stats import EngineStats
from rolltree.engine.step import Outcome, Step
from rolltree.engine.verify import Verifier
from rolltree.errors import InvalidInputError, RequestError
from rolltree.sampling import RowParams
from rolltree.store import RolloutStore
from rolltree.types import Drafter, Int64Array

FLOAT32_TIE_MARGIN = 1e-4  # ten times the largest difference seen between batch shapes
SMALL_PREFILL = 64  # tokens of a prefill forward after the usual size ran out of memory
DEFAULTS = EngineConfig()
Progress = Callable[[int, int], None]


class Engine:
    """Generates rollouts; see `generate`, or `submit` and `step` for one step at a time."""

    def __init__(
        self, model: PreTrainedModel, config: EngineConfig = DEFAULTS, drafter: Drafter | None = None, *,
        store: RolloutStore | None = None,
    ) -> None:  # fmt: skip
        """Allocate the cache; raise InvalidInputError for a model family that cannot work, CapacityError for
        its size. Every finished rollout goes to `store`, with its log-probabilities.
        """
        shape = ModelShape.of(model)
        self.config, self.shape, self.stats = config, shape, EngineStats()
        self.max_length = _max_length(config, shape)
        self._cache = SlotCache(
            layers=shape.layers,
            slots=config.slots,
            length=self.max_length + config.max_draft + 1,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=shape.device,
        )
        self._runner = Runner(model, self._cache, shape)
        margin = FLOAT32_TIE_MARGIN if shape.dtype == torch.float32 else 0.0
        self._verifier = Verifier(
            rule=config.rule,
            tie_margin=margin if config.tie_margin is None else config.tie_margin,
            sample_elements=config.sample_elements,
            stats=self.stats,
            compiled=config.compile,
        )
        self._source = DraftSource(
            drafter,
            vocab=shape.vocab,
            max_draft=config.max_draft,
            coupled=config.rule == "coupled",
            stats=self.stats,
        )
        self.recorder = Recorder(store, drafter)
        self.learner = CostLearner(drafter) if config.learn_cost else None
        """Observes step times when `config.learn_cost`; None otherwise."""
        self._rows = Rows(config.slots, self.max_length)
        self._waiting: deque[Job] = deque()
        self._finished: list[Result] = []
        self._params: RowParams | None = None
        self._next_id = 0

    def generate(
        self, requests: Sequence[Request], progress: Progress | None = None, *,
        before_step: Callable[[], None] | None = None,
    ) -> list[Result]:  # fmt: skip
        """Run the requests to their end; results in order. `progress(done, total)` is called as requests
        finish, `before_step` before each step.

        A request that fails has its `error` set; the others go on. Leaving by an exception aborts what is
        unfinished.
        """
        results: dict[int, Result] = {}
        ids: list[int] = []
        with self._runner.active():
            try:
                ids = [self.submit(request) for request in requests]
                wanted = set(ids)
                others: list[Result] = []
                while len(results) < len(ids):
                    if before_step is not None:
                        before_step()
                    done = self.step()
                    results |= {result.id: result for result in done if result.id in wanted}
                    others += [result for result in done if result.id not in wanted]
                    if done and progress is not None:
                        progress(len(results), len(ids))
            except BaseException:
                for id in ids:
                    self.abort(id)
                self._finished = [result for result in self._finished if result.id not in wanted]
                raise
        self._finished = others + self._finished
        return [results[id] for id in ids]

    def submit(self, request: Request, on_finish: OnFinish | None = None) -> int:
        """Queue a request and return its id; one that cannot run comes back from the next `step` with its
        error. With `on_finish` it is run-ahead: its result goes there, `step` never returns it, no store holds it.
        """
        id, self._next_id = self._next_id, self._next_id + 1
        try:
            prompt = checked_prompt(request, vocab=self.shape.vocab, max_length=self.max_length)
        except RequestError as error:
            self._deliver(unstarted(id, request, "error", error), on_finish)
            self.stats.finished += 1
            self.stats.failed += 1
        else:
            if not any(self._rows.jobs):
                self._rows.forget_cached()
            self._waiting.append(Job(id, request, prompt, on_finish))
        return id

    def abort(self, id: int, *, keep: bool = False) -> bool:
        """End a request; its Result, with what it has, comes from the next `step`. False if it is not
        running. `keep`: what it has stays in the drafter's memory.
        """
        for job in self._waiting:
            if job.id == id:
                self._waiting.remove(job)
                self._deliver(unstarted(id, job.request, "abort"), job.on_finish)
                return True
        for row, running in enumerate(self._rows.jobs):
            if running is not None and running.id == id:
                self._finish(row, "abort", keep=keep)
                return True
        return False

    @property
    def unfinished(self) -> int:
        """Requests submitted that `step` has not returned, of those that it will return."""
        jobs = [*self._waiting, *(job for job in self._rows.jobs if job is not None)]
        return sum(job.on_finish is None for job in jobs) + len(self._finished)

    def load(self) -> tuple[int, int]:
        """Requests that run and that wait, those with `on_finish` left out."""
        running = sum(job is not None and job.on_finish is None for job in self._rows.jobs)
        return running, sum(job.on_finish is None for job in self._waiting)

    def progress(self) -> list[tuple[int, int]]:
        """(id, generated tokens) of the requests that run."""
        rows = self._rows
        return [(job.id, int(rows.length[r] - rows.prompt[r])) for r, job in enumerate(rows.jobs) if job is not None]

    @property
    def next_id(self) -> int:
        """What the next `submit` returns."""
        return self._next_id

    def step(self) -> list[Result]:
        """Advance every running request by one verify step; returns the requests that ended."""
        with self._runner.active():
            step = self._schedule()
            ran = self._run(step)
            if ran is not None:
                self._postprocess(*ran)
                if self.learner is not None:
                    self.learner.observe(ran[0].layout.counts, self.stats)
        done, self._finished = self._finished, []
        return done

    def _schedule(self) -> Step | None:
        """Fill free rows, then draft for all."""
        rows, stats = self._rows, self.stats
        with stats.timed("prefill"):
            new = self._admit()
        with stats.timed("draft"):
            for row in new:
                job = rows.jobs[row]
                assert job is not None
                rows.handle[row] = self._source.open(job)
            close_holes(rows, self._cache)  # of prompts that ran out of memory
            if rows.count == 0:
                return None
            return Step.of(rows, self._source.draft(rows))

    def _admit(self) -> list[int]:
        """Rows that were given to waiting requests, their prompts in the cache."""
        rows, before = self._rows, self._rows.count
        new = seat(self._waiting, rows, self._cache)
        if new or rows.count != before:
            self._params = None
        if not new or self._prefill(new, self.config.prefill_tokens):
            return new
        for row in new:  # one by one, so that only a prompt that is too much by itself fails
            if not self._prefill([row], SMALL_PREFILL):
                self._finish(row, "error", RequestError("out of memory in the prefill of this prompt"))
        return [row for row in new if rows.jobs[row]]

    def _prefill(self, new: list[int], limit: int) -> bool:
        """Whether there was enough memory."""
        try:
            prefill(new, self._rows, self._runner, limit, self.stats)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.stats.out_of_memory += 1
            return False
        return True

    def _run(self, step: Step | None) -> tuple[Step, Outcome] | None:
        """Forward and verify; out of memory, go on with less: first without drafts, then without the newest
        request.
        """
        while step is not None:
            try:
                return step, self._verify(step)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self.stats.out_of_memory += 1
            if step.layout.queries == 1:
                self._shed()
            step = Step.of(self._rows, Drafts.none(self._rows.count)) if self._rows.count else None
        return None

    def _verify(self, step: Step) -> Outcome:
        rows, stats = self._rows, self.stats
        params = self._row_params()
        with stats.timed("forward"):
            logits = self._runner.logits(step.layout, step.tokens, step.start, step.trees)
        with stats.timed("sample"):
            return self._verifier.verify(step, logits, params, rows.seed[: rows.count], self._decide)

    def _row_params(self) -> RowParams:
        """Sampling settings of the running rows, kept while the rows stay."""
        if self._params is None:
            jobs = [job for job in self._rows.jobs[: self._rows.count] if job]
            shared = len({job.policy for job in jobs}) == 1
            self._params = RowParams.of([job.sampling for job in (jobs[:1] if shared else jobs)], self.shape.device)
        return self._params

    def _decide(self, row: int, drafted: Int64Array) -> Tensor:
        prefix = self._rows.tokens[row, : self._rows.length[row]]
        return self._runner.plain_logits(np.concatenate((prefix, drafted)))

    def _shed(self) -> None:
        rows = self._rows
        newest = max(range(rows.count), key=lambda row: job.id if (job := rows.jobs[row]) else -1)
        self._finish(newest, "error", RequestError("out of memory: the newest request was dropped"))
        close_holes(rows, self._cache)

    def _postprocess(self, step: Step, outcome: Outcome) -> None:
        """Commit what was emitted, tell the drafter, end what is done."""
        with self.stats.timed("update"):
            rows = self._rows
            emission = emit(rows, outcome)
            self._repair(step, outcome, emission)
            rows.append(emission)
            self._count(step, emission)
        with self.stats.timed("draft"):
            self._source.advance(rows, emission.tokens, emission.counts)
        with self.stats.timed("update"):
            self._retire(emission)

    def _repair(self, step: Step, outcome: Outcome, emission: Emission) -> None:
        """Put accepted tree paths where a chain would be, and zero what a failed forward wrote."""
        length = self._cache.length
        if step.trees is not None:
            node = outcome.path[emission.row, emission.order]
            moved = node != emission.order
            base = emission.row[moved] * length + step.start[emission.row[moved]]
            if len(base):
                self._cache.move(self._places(base + node[moved]), self._places(base + emission.order[moved]))
        if len(outcome.bad_nodes):
            row = step.layout.row_of[outcome.bad_nodes]
            self._cache.clear(self._places(row * length + step.start[row] + step.layout.node[outcome.bad_nodes]))

    def _places(self, places: Int64Array) -> Tensor:
        return torch.from_numpy(places).to(self.shape.device)

    def _count(self, step: Step, emission: Emission) -> None:
        stats, layout = self.stats, step.layout
        rows, verified = len(layout.counts), len(layout.row_of)
        stats.steps += 1
        stats.row_steps += rows
        stats.tokens += len(emission.tokens)
        stats.drafted += verified - rows
        stats.verified += verified
        stats.padded += layout.padded
        stats.accepted += int(np.maximum(emission.counts - 1, 0).sum())
        self._rows.drafted[:rows] += layout.counts - 1

    def _retire(self, emission: Emission) -> None:
        rows = self._rows
        n = len(emission.counts)
        full = rows.length[:n] >= rows.end[:n]
        for row in np.flatnonzero(emission.failed | emission.stopped | full).tolist():
            if emission.failed[row]:
                self._cache.clear_row(row)
                self._finish(row, "error", RequestError("the model returned NaN or infinite logits"))
            else:
                self._finish(row, "stop" if emission.stopped[row] else "length")

    def _finish(self, row: int, reason: FinishReason, error: RequestError | None = None, *, keep: bool = False) -> None:
        """End the request in `row`, which becomes a hole."""
        job, done = self._rows.jobs[row], reason in ("stop", "length")
        assert job is not None
        if done and job.on_finish is None:
            self.recorder.finish(self._rows, row)
        self._source.close(int(self._rows.handle[row]), keep=done or keep)
        self._deliver(self._rows.take(row, reason, error), job.on_finish)
        self._params = None
        self.stats.finished += 1
        self.stats.failed += error is not None

    def _deliver(self, result: Result, on_finish: OnFinish | None) -> None:
        if on_finish is None:
            self._finished.append(result)
        else:
            on_finish(result)


def _max_length(config: EngineConfig, shape: ModelShape) -> int:
    if config.max_length is None:
        return min(shape.context, DEFAULT_LENGTH)
    if config.max_length > shape.context:
        raise InvalidInputError(
            "engine.max_length", config.max_length, f"at most the model's context of {shape.context}"
        )
    return config.max_length
