"""Run-ahead's hook in the built-in engine: while a batch thins out, its free rows generate prompts of the next batches.

Carries out what `rolltree.serving.ahead` says, before each engine step. What is generated ahead goes into the
drafter's trees and nowhere else: no result list and no store holds it. With the coupled rule the real rollouts are the
same, token for token, with and without.

A coming request that has a seed is generated ahead with it. Under the coupled rule its noise is then that of the real
request, so as far as the policy stays, so does the text: the best draft there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from rolltree.drafting import TreeDrafter
from rolltree.engine.engine import Engine, Progress
from rolltree.engine.request import Request, Result
from rolltree.runahead import Launch, RunAheadController
from rolltree.serving.ahead import AheadDriver, Prompt, RealRequest

OTHER_SEED = 0x9E3779B97F4A7C15
"""Added to a seed for more rollouts of a prompt than its requests: odd, 2^64 over the golden ratio."""


class RunAheadEngine:
    """An engine whose idle rows work ahead; use `generate` in place of the engine's.

    Args:
        engine: with `drafter`; its other calls may be used in between.
        drafter: needs a frozen `cost`, unless the engine learns its own.
        control: decides; None takes default settings.
        clock: seconds; None: `time.perf_counter` where the engine learns its cost, else the sum of the cost model's
            step times, so that the same requests give the same decisions.

    """

    def __init__(
        self, engine: Engine, drafter: TreeDrafter, control: RunAheadController | None = None, *,
        clock: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.drafter, self._modelled = engine, drafter, 0.0
        learner = engine.learner
        self.driver = AheadDriver[int](
            engine.config.slots, control, cost=None if learner else drafter.cost,
            observer=learner.observer if learner else None, rollouts=self._rollouts,
            clock=clock or (time.perf_counter if learner else lambda: self._modelled),
        )  # fmt: skip
        self.control = self.driver.control
        self._before = (0, 0)  # row steps and draft tokens at the last look
        self._ids_end = 0  # ids of the real requests are below
        self._ended: dict[int, RealRequest] = {}

    def generate(
        self, requests: Sequence[Request], upcoming: Sequence[Sequence[Request]] = (), progress: Progress | None = None
    ) -> list[Result]:
        """Run `requests` to their end, as `Engine.generate` does; `upcoming[i]` are those of the i-th call after this.

        All run-ahead has ended when this returns, and when it raises.
        """
        prompts = [as_prompt(request) for request in requests]
        coming = [[as_prompt(request) for request in batch if request.remember] for batch in upcoming]
        self.driver.begin(coming, expected_tokens=float(self.driver.expected_tokens(prompts).sum()))
        for id, prompt in enumerate(prompts, start=self.engine.next_id):
            self.driver.started(id, prompt.identity, prompt.limit, self._rollouts(prompt))
        self._ids_end, self._ended = self.engine.next_id + len(prompts), {}
        self._before = (self.engine.stats.row_steps, self.engine.stats.drafted)
        try:
            results = self.engine.generate(requests, progress, before_step=self._before_step)
        except BaseException:
            self._abort()
            self.driver.real.clear()
            self.driver.end(complete=False)
            raise
        self._abort()
        for result in results:
            real = self._ended.get(result.id) or self.driver.ended(result.id)
            real.tokens, real.row_steps, real.drafted = len(result.token_ids), result.steps, result.drafted
        self.driver.end()
        return results

    def _before_step(self) -> None:
        """Report what the last step was, and do what is decided."""
        self._observe()
        real, (live, waiting) = self.driver.real, self.engine.load()
        running = {id: tokens for id, tokens in self.engine.progress() if id in real}
        queued_from = self._ids_end - waiting  # ids grow in the order of submission
        for id in [id for id in real if id not in running and id < queued_from]:
            self._ended[id] = self.driver.ended(id)
        for id, tokens in running.items():
            real[id].tokens = tokens
        decision = self.driver.decide(live, waiting)
        if decision.stop:
            self._abort()
        for launch in decision.launch:
            self._launch(launch)

    def _observe(self) -> None:
        """Account the step since the last look; run-ahead rows that ended in it count as real ones."""
        stats, (row_steps, drafted) = self.engine.stats, self._before
        rows, self._before = stats.row_steps - row_steps, (stats.row_steps, stats.drafted)
        if rows:
            self.driver.drafted = (stats.drafted - drafted) / rows
            self._modelled += self.driver.step_seconds(rows)
            running = min(len(self.driver.running), rows)
            self.driver.stepped(rows - running, running)

    def _launch(self, launch: Launch) -> None:
        prompt, again = self.driver.prompt(launch)
        sampling = replace(prompt.sampling, max_tokens=launch.max_tokens)
        if again and sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + launch.sample * OTHER_SEED) % 2**64)
        self.driver.launched(self.engine.next_id, launch)
        self.engine.submit(Request(prompt.token_ids, sampling, prompt.key), on_finish=self._finished)

    def _finished(self, result: Result) -> None:
        self.driver.running[result.id].tokens = len(result.token_ids)
        self.driver.finished(result.id, cancelled=result.finish_reason == "abort")

    def _abort(self) -> None:
        for id in list(self.driver.running):
            self.engine.abort(id, keep=True)

    def _rollouts(self, prompt: Prompt) -> int:
        return self.drafter.cache.rollouts(prompt.token_ids, key=prompt.key)


def as_prompt(request: Request) -> Prompt:
    """Return a request as the driver sees it."""
    return Prompt(token_ids=request.prompt_token_ids, sampling=request.sampling, key=request.key)  # type: ignore[arg-type]
