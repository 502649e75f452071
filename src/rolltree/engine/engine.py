"""The built-in engine: continuous batching over a Hugging Face causal LM with exact speculative decoding.

`step()` is schedule, run, postprocess; everything else is a call away. The engine owns requests and rows; it
neither drafts (a `Drafter` does), nor knows acceptance rules (`rolltree.sampling` does), nor changes the
model, which may be in training: attention and mode are switched for the duration of a call. Not thread-safe.
Invariant: with the coupled rule a rollout is a function of (weights, prompt, sampling settings, seed) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from rolltree.engine.admission import admit, close_holes
from rolltree.engine.config import EngineConfig
from rolltree.engine.drafts import CheckedDrafts, DraftSource
from rolltree.engine.emit import Emission, commit, emit
from rolltree.engine.families import ModelShape
from rolltree.engine.intake import Integers, runnable, well_formed
from rolltree.engine.kv_cache import SlotCache
from rolltree.engine.learner import CostLearner
from rolltree.engine.queue import Queue
from rolltree.engine.recorder import Recorder
from rolltree.engine.repair import repair
from rolltree.engine.request import FinishReason, Request, Result
from rolltree.engine.runner import Runner, is_out_of_memory
from rolltree.engine.running import OnFinish, Rows
from rolltree.engine.selfcheck import check_model
from rolltree.engine.stats import EngineStats
from rolltree.engine.step import Outcome, VerifyStep
from rolltree.engine.verify import Verifier, tie_margin
from rolltree.errors import RequestError
from rolltree.sampling import RowParams
from rolltree.store import RolloutStore
from rolltree.types import Drafter, Int64Array

DEFAULTS = EngineConfig()
Progress = Callable[[int, int], None]


class Engine:
    """Generates rollouts; see `generate`, or `submit` and `step` for one step at a time."""

    def __init__(
        self, model: PreTrainedModel, config: EngineConfig = DEFAULTS, drafter: Drafter | None = None, *,
        store: RolloutStore | None = None,
    ) -> None:  # fmt: skip
        """Allocate the cache. Every finished rollout goes to `store`, with its log-probabilities.

        At the first use of a model its own forward is compared with the engine's on a short text.

        Raises:
            InvalidInputError: a model family that cannot work, or that does not compute the same here.
            CapacityError: no memory for a cache of this size.

        """
        shape = ModelShape.of(model)
        self.config, self.shape, self.stats = config, shape, EngineStats()
        self.max_length = shape.longest(config.max_length)
        self._cache = SlotCache(
            layers=shape.layers, slots=config.slots, length=self.max_length + config.max_draft + 1,
            kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=shape.dtype, device=shape.device,
        )  # fmt: skip
        self._runner = Runner(model, self._cache, shape)
        check_model(self._runner, shape, self.max_length)
        self._verifier = Verifier(
            rule=config.rule, tie_margin=tie_margin(config, shape.dtype), sample_elements=config.sample_elements,
            stats=self.stats, compiled=config.compile,
        )  # fmt: skip
        self._source = DraftSource(
            drafter, vocab=shape.vocab, max_draft=config.max_draft, coupled=config.rule == "coupled", stats=self.stats
        )
        self.recorder = Recorder(store, drafter, self.stats)
        self.learner = CostLearner(drafter) if config.learn_cost else None
        """Observes step times when `config.learn_cost`; None otherwise."""
        self._rows = Rows(config.slots, self.max_length)
        self._queue = Queue()
        self._params: RowParams | None = None

    def generate(
        self, requests: Sequence[Request], progress: Progress | None = None, *,
        before_step: Callable[[], None] | None = None,
    ) -> list[Result]:  # fmt: skip
        """Run the requests to their end; results in order.

        `progress(done, total)` is called as requests finish, `before_step` before each step. A request that fails has
        its `error` set; the others go on. Leaving by an exception aborts what is unfinished.

        Raises:
            InvalidInputError: one of `requests` is no request; its place is named, and none was queued.

        """
        prompts = [well_formed(request, f"requests[{i}]") for i, request in enumerate(requests)]
        results, others = dict[int, Result](), list[Result]()
        wanted = dict[int, None]()  # in order
        with self._runner.active():
            try:
                for request, prompt in zip(requests, prompts, strict=True):
                    wanted[self._enqueue(request, prompt, None)] = None
                while len(results) < len(wanted):
                    if before_step is not None:
                        before_step()
                    done = self.step()
                    results |= {result.id: result for result in done if result.id in wanted}
                    others += [result for result in done if result.id not in wanted]
                    if done and progress is not None:
                        progress(len(results), len(wanted))
            except BaseException:
                for id in wanted:
                    self.abort(id)
                self._queue.forget(wanted)
                raise
            finally:
                self._queue.put_back(others)
        return [results[id] for id in wanted]

    def submit(self, request: Request, on_finish: OnFinish | None = None) -> int:
        """Queue a request and return its id; one that cannot run comes back from the next `step` with its
        error. With `on_finish` it is run-ahead: its result goes there, `step` never returns it, no store holds it.

        Raises:
            InvalidInputError: this is no request; nothing was queued.

        """
        return self._enqueue(request, well_formed(request), on_finish)

    def _enqueue(self, request: Request, prompt: Integers, on_finish: OnFinish | None) -> int:
        id = self._queue.new_id()
        try:
            tokens = runnable(prompt, vocab=self.shape.vocab, max_length=self.max_length)
        except RequestError as error:
            self.stats.end(failed=True)
            self._queue.refuse(id, request, error, on_finish)
        else:
            if not any(self._rows.jobs):
                self._rows.forget_cached()
            self._queue.add(id, request, tokens, on_finish)
        return id

    def abort(self, id: int, *, keep: bool = False) -> bool:
        """End a request: the next `step` returns what it has; `keep` lets the drafter remember it. False: none runs."""
        if self._queue.withdraw(id):
            return True
        row = self._rows.find(id)
        if row is not None:
            self._finish(row, "abort", keep=keep)
        return row is not None

    @property
    def unfinished(self) -> int:
        """Requests submitted that `step` has not returned, of those that it will return."""
        return self._queue.to_return

    def load(self) -> tuple[int, int]:
        """Requests that run and that wait, those with `on_finish` left out."""
        running = sum(job is not None and job.on_finish is None for job in self._rows.jobs)
        return running, sum(job.on_finish is None for job in self._queue.waiting)

    def progress(self) -> list[tuple[int, int]]:
        """(id, generated tokens) of the requests that run."""
        rows = self._rows
        return [(job.id, int(rows.length[r] - rows.prompt[r])) for r, job in enumerate(rows.jobs) if job is not None]

    @property
    def next_id(self) -> int:
        """What the next `submit` returns."""
        return self._queue.next_id

    def step(self) -> list[Result]:
        """Advance every running request by one verify step; returns the requests that ended.

        Leaving by an exception (of the model, or an interrupt) aborts every request, because rows and sessions may be
        half updated; the drafter forgets them, the next call returns them, and the engine can be used on.
        """
        with self._runner.active():
            try:
                self._advance()
            except BaseException:
                self._abandon()
                raise
        return self._queue.fetch()

    def _advance(self) -> None:
        step = self._schedule()
        ran = self._run(step)
        if ran is not None:
            self._postprocess(*ran)
            if self.learner is not None:
                self.learner.observe(ran[0].layout.counts, ran[1].counts, self.stats)

    def _abandon(self) -> None:
        """Abort everything: keep what the rows have for the results, trust nothing else of them."""
        self._source.abandon()
        for row in self._rows.live():
            self._deliver(row, "abort", None)
        self._queue.abandon()
        for row in range(self._rows.count):
            self._cache.clear_row(row)  # a forward that was cut short may have left what is not finite
        self._rows.reset()
        self._params = None

    def _schedule(self) -> VerifyStep | None:
        """Fill free rows, then draft for all."""
        rows, stats = self._rows, self.stats
        with stats.timed("prefill"):
            new = self._admit()
        with stats.timed("draft"):
            for row in new:
                rows.handle[row] = self._source.open(rows.job(row))
            close_holes(rows, self._cache)  # of prompts that ran out of memory
            if rows.count == 0:
                return None
            return VerifyStep.of(rows, self._source.draft(rows))

    def _admit(self) -> list[int]:
        """Rows that were given to waiting requests, their prompts in the cache."""
        rows, before = self._rows, self._rows.count
        new, failed = admit(self._queue.waiting, rows, self._runner, self.config.prefill_tokens, self.stats)
        if new or rows.count != before:
            self._params = None
        for row in failed:
            self._finish(row, "error", RequestError("out of memory in the prefill of this prompt"))
        return new

    def _run(self, step: VerifyStep | None) -> tuple[VerifyStep, Outcome] | None:
        """Forward and verify; out of memory, go on with less: without drafts, then without the newest request."""
        while step is not None:
            try:
                return step, self._verify(step)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self.stats.out_of_memory += 1
            if step.layout.queries == 1:
                self._shed()
            step = VerifyStep.of(self._rows, CheckedDrafts.none(self._rows.count)) if self._rows.count else None
        return None

    def _verify(self, step: VerifyStep) -> Outcome:
        rows, stats = self._rows, self.stats
        if self._params is None:  # kept while the rows stay
            self._params = RowParams.of([rows.job(row).sampling for row in range(rows.count)], self.shape.device)
        with stats.timed("forward"):
            logits = self._runner.logits(step.layout, step.tokens, step.start, step.trees)
        with stats.timed("sample"):
            return self._verifier.verify(step, logits, self._params, rows.seed[: rows.count], self._decide)

    def _decide(self, row: int, drafted: Int64Array) -> Tensor:
        prefix = self._rows.tokens[row, : self._rows.length[row]]
        return self._runner.plain_logits(np.concatenate((prefix, drafted)))

    def _shed(self) -> None:
        rows = self._rows
        newest = max(range(rows.count), key=lambda row: rows.job(row).id)
        self._finish(newest, "error", RequestError("out of memory: the newest request was dropped"))
        close_holes(rows, self._cache)

    def _postprocess(self, step: VerifyStep, outcome: Outcome) -> None:
        """Commit what was emitted, tell the drafter, end what is done."""
        with self.stats.timed("update"):
            rows = self._rows
            emission = emit(rows, outcome)
            repair(self._cache, step, outcome, emission)
            commit(rows, emission)
            rows.drafted[: rows.count] += step.layout.counts - 1
            self.stats.add_step(step.layout, emission.counts)
        with self.stats.timed("draft"):
            self._source.advance(rows, emission.tokens, emission.counts)
        with self.stats.timed("update"):
            self._retire(emission)

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
        job, done = self._rows.job(row), reason in ("stop", "length")
        remember = job.request.remember
        if done and remember and job.on_finish is None:
            self.recorder.finish(self._rows, row)
        self._source.close(int(self._rows.handle[row]), keep=remember and (done or keep))
        self._deliver(row, reason, error)
        self._params = None
        self.stats.end(failed=error is not None)

    def _deliver(self, row: int, reason: FinishReason, error: RequestError | None) -> None:
        job = self._rows.job(row)
        self._queue.deliver(self._rows.take(row, reason, error), job.on_finish)
