"""Run-ahead's hook in vLLM: an `AsyncLLM` generates batches, and while one thins out, prompts of the next ones.

Carries out what `rolltree.serving.ahead` says, from the front end alone: nothing of vLLM is changed, and no request of
anybody else is touched. Start the engine with `scheduling_policy="priority"`: run-ahead requests then wait behind all
others and are preempted first. A priority takes no slot from a running request, so they are launched into free slots
only, and cancelled before a real request would find none. Their text enters the trees, marked `run-ahead`; no caller
sees it. The first turn only: tools and environments are never run ahead. All methods run on the engine's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.runahead import Launch, RunAheadController
from rolltree.serving.ahead import NO_LIMIT, AheadDriver, Prompt, request_name
from rolltree.serving.request_options import with_options

__all__ = ["Prompt", "RunAheadLLM"]

PRIORITY = 1_000_000
"""Of run-ahead requests; lower numbers go first, and trainers use 0 to the batch size."""


class RunAheadLLM:
    """Generates batches, and works ahead in their tails; or, for others who generate, between `begin` and `end`.

    Args:
        engine: a `vllm.v1.engine.async_llm.AsyncLLM`, made with `scheduling_policy="priority"`.
        slots: its `max_num_seqs`.
        control: decides; None takes default settings.
        cost: frozen step-cost model; None learns it from when outputs arrive.
        clock: seconds.

    Raises:
        InvalidInputError: another scheduling policy.

    """

    def __init__(
        self, engine: Any, *, slots: int, control: RunAheadController | None = None, cost: CostModel | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        policy = engine.vllm_config.scheduler_config.policy
        if policy != "priority":
            fix = "Without it run-ahead requests could delay real ones."
            raise InvalidInputError("vllm scheduling_policy", policy, "'priority'", fix)
        self.engine, self.driver = engine, AheadDriver[str](slots, control, cost=cost, clock=clock)
        self.control = self.driver.control
        self.lora_request: Any = None
        """Goes with run-ahead requests: that of the real ones, where they have one."""
        self._changed, self._lock = asyncio.Event(), asyncio.Lock()
        self._follower: asyncio.Task[None] | None = None
        self._readers: dict[str, asyncio.Task[None]] = {}

    async def generate(self, requests: Sequence[Prompt], upcoming: Sequence[Sequence[Prompt]] = ()) -> list[Any]:
        """Run the requests to their end; their last `RequestOutput`s in order, with all tokens.

        `upcoming[i]` are the requests of the i-th call after this. When this returns or raises, no run-ahead request is
        left in the engine.

        Raises:
            InvalidInputError: a request for more than one sample.

        """
        for request in requests:
            if request.sampling.n != 1:
                raise InvalidInputError("sampling.n", request.sampling.n, "1", "Send one request for each sample.")
        await self.begin(upcoming, expected_tokens=float(self.driver.expected_tokens(requests).sum()))
        tasks = [asyncio.create_task(self._run_real(request)) for request in requests]
        try:
            outputs = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.end(complete=False)
            raise
        await self.end()
        return list(outputs)

    async def begin(self, upcoming: Sequence[Sequence[Prompt]] = (), *, expected_tokens: float = 0) -> None:
        """Start a training step, see `AheadDriver.begin`; one that was not ended is given up."""
        await self.end(complete=False)
        self.driver.begin(upcoming, expected_tokens=expected_tokens)
        self._follower = asyncio.create_task(self._follow())

    def announce(self, upcoming: Sequence[Sequence[Prompt]]) -> int:
        """Say what comes after this step, see `AheadDriver.announce`; how many prompts are cold."""
        cold = self.driver.announce(upcoming)
        self._changed.set()
        return cold

    async def end(self, *, complete: bool = True) -> None:
        """End the step: no run-ahead request is left in the engine. Its real requests count where it is complete."""
        follower, self._follower = self._follower, None
        if follower is None:
            return
        follower.cancel()
        try:
            await self.make_way()
            with contextlib.suppress(asyncio.CancelledError):
                await follower
        finally:
            self.driver.end(complete=complete)

    @contextlib.asynccontextmanager
    async def real(self, identity: str, limit: int | None) -> AsyncIterator[Callable[[int], None]]:
        """Surround a real request, from before it is submitted to its end.

        Yields a function to call with the number of tokens that it has, at each output.
        """
        if self._follower is None:
            yield lambda tokens: None
            return
        driver, name = self.driver, request_name("real")

        def has(tokens: int) -> None:
            driver.output(name, tokens)
            self._changed.set()

        driver.started(name, identity, limit or NO_LIMIT)  # before anything is awaited: its slot is taken from now on
        try:
            if len(driver.real) + len(driver.running) > driver.slots:
                await self.make_way()
            yield has
        finally:
            driver.ended(name)
            self._changed.set()

    async def make_way(self) -> None:
        """Cancel all run-ahead now: call it before real requests are submitted that `real` does not surround."""
        async with self._lock:  # a request that is being added cannot be aborted yet
            names = list(self.driver.running)
            try:
                if names:
                    await self.engine.abort(names)
            finally:
                for name in names:
                    self.driver.finished(name, cancelled=True)
                    if (reader := self._readers.pop(name, None)) is not None:
                        reader.cancel()

    async def _run_real(self, request: Prompt) -> Any:
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling.clone()
        sampling.output_kind = RequestOutputKind.CUMULATIVE
        output = None
        async with self.real(request.identity, request.sampling.max_tokens) as has:
            prompt = {"prompt_token_ids": list(request.token_ids)}
            async for output in self.engine.generate(prompt, sampling, request_name("real")):
                has(len(output.outputs[0].token_ids))
        return output

    async def _follow(self) -> None:
        """Carry out what is decided, whenever something has changed."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            decision = self.driver.decide(*self.driver.load)
            if decision.stop:
                await self.make_way()
            for launch in decision.launch:
                await self._launch(launch)

    async def _launch(self, launch: Launch) -> None:
        async with self._lock:
            if not self.driver.has_room:  # real requests came while this waited
                self.driver.refused(launch)
                return
            prompt, name = self.driver.prompt(launch)[0], request_name("ahead")
            self.driver.launched(name, launch)
            text = {"prompt_token_ids": list(prompt.token_ids)}
            queue = await self.engine.add_request(
                name, text, _sampling(prompt, launch), lora_request=self.lora_request, priority=PRIORITY
            )
            self._readers[name] = asyncio.create_task(self._read(name, queue))

    async def _read(self, name: str, queue: Any) -> None:
        request, output = self.driver.running[name], None
        while output is None or not output.finished:
            output = queue.get_nowait() or await queue.get()
            request.tokens += len(output.outputs[0].token_ids)
        self._readers.pop(name, None)
        self.driver.finished(name, cancelled=output.outputs[0].finish_reason == "abort")


def _sampling(prompt: Prompt, launch: Launch) -> Any:
    """Sampling parameters of a launch: the prompt's own, without its seed."""
    from vllm.sampling_params import RequestOutputKind

    sampling = prompt.sampling.clone()
    sampling.max_tokens, sampling.seed, sampling.output_kind = launch.max_tokens, None, RequestOutputKind.DELTA
    sampling.min_tokens = min(sampling.min_tokens, launch.max_tokens)
    mark = {"kind": "run-ahead"} | ({} if prompt.key is None else {"key": prompt.key})
    sampling.extra_args = with_options(sampling.extra_args, **mark)
    return sampling
