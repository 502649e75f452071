"""Run-ahead in real vLLM: real outputs stay, text is generated ahead into the trees, nothing is left in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from rolltree import CostModel
from rolltree.demo.assets import model_folder
from rolltree.errors import InvalidInputError
from rolltree.runahead import RunAheadConfig, RunAheadController
from rolltree.vllm import AsyncControl
from rolltree.vllm.ahead import Prompt, RunAheadLLM
from tests.vllm.engines import METHODS, OPTIONS, prompts

SLOTS = 8
CHEAP = CostModel(base=1e-2, token=1e-7)
"""A frozen cost model by which a row costs next to nothing: decisions do not depend on this machine's speed."""
EAGER = RunAheadConfig(budget_share=10, holdout=0, max_slowdown=1)


def with_engine(work: Callable[[Any], Awaitable[None]], **settings: Any) -> None:
    """Run `work` on an AsyncLLM in this process."""

    async def run() -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        from vllm import AsyncEngineArgs

        defaults: dict[str, Any] = {
            "model": str(model_folder()), "speculative_config": METHODS["rolltree"], "dtype": "float32",
            "additional_config": {"rolltree": OPTIONS}, "enforce_eager": True, "max_model_len": 256, "seed": 0,
            "max_num_seqs": SLOTS, "scheduling_policy": "priority", "distributed_executor_backend": "uni",
        }  # fmt: skip
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**(defaults | settings)))
        try:
            await asyncio.wait_for(work(engine), 300)
        finally:
            engine.shutdown()

    asyncio.run(run())


def batch(step: int, longest: int = 150) -> list[Prompt]:
    """A greedy batch with a tail: the first request does not stop."""
    from vllm import SamplingParams

    texts = [p["prompt_token_ids"] for p in prompts(SLOTS * 4)[SLOTS * step : SLOTS * (step + 1)]]
    sampling = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (longest, *[20] * (SLOTS - 1))]
    return [Prompt(token_ids=ids, sampling=chosen) for ids, chosen in zip(texts, sampling, strict=True)]


def hold(engine: Any) -> asyncio.Event:
    """Keep the tails from ending, however fast the engine is: long requests reach it when the event is set."""
    release, generate = asyncio.Event(), engine.generate

    async def held(prompt: Any, sampling: Any, name: str) -> AsyncIterator[Any]:
        if sampling.max_tokens > 20:
            await release.wait()
        async for output in generate(prompt, sampling, name):
            yield output

    engine.generate = held
    return release


async def until(done: Callable[[], object], ahead: RunAheadLLM, running: asyncio.Task[Any]) -> None:
    """Wait; the controller is asked again and again, as it is when outputs arrive."""
    while not done():
        assert not running.done()
        ahead._changed.set()
        await asyncio.sleep(0)


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_run_ahead_end_to_end() -> None:
    async def work(engine: Any) -> None:
        plain = RunAheadLLM(
            engine, slots=SLOTS, control=RunAheadController(RunAheadConfig(budget_tokens=0)), cost=CHEAP
        )
        expected = [tokens(await plain.generate(batch(step))) for step in range(3)]
        statistics = AsyncControl(engine)
        await statistics.clear()
        before = await statistics.stats()
        ahead = RunAheadLLM(engine, slots=SLOTS, control=RunAheadController(EAGER), cost=CHEAP)
        release, earlier = hold(engine), 0.0
        for step in range(3):
            release.clear()
            running = asyncio.create_task(ahead.generate(batch(step), [batch(step + 1)]))
            await until(lambda: ahead.control.gauges()["tokens"] > earlier + 50, ahead, running)  # noqa: B023
            release.set()
            assert tokens(await running) == expected[step]
            earlier = ahead.control.gauges()["tokens"]
            assert not ahead.driver.running
            assert not engine.output_processor.request_states  # nothing is left to drain
        gauges = ahead.control.gauges()
        assert gauges["launched"] > 4
        assert gauges["tokens"] > 50
        assert gauges["prompts_used"] > 2
        after = await statistics.stats()
        assert after["tokens_run_ahead"] - before.get("tokens_run_ahead", 0) > 50
        assert after["accepted_run_ahead"] > before["accepted_run_ahead"]  # drafts came of it

    with_engine(work)


def test_real_work_of_others_comes_first() -> None:
    async def work(engine: Any) -> None:
        ahead = RunAheadLLM(engine, slots=SLOTS, control=RunAheadController(EAGER), cost=CHEAP)
        release = hold(engine)
        running = asyncio.create_task(ahead.generate(batch(0, longest=200), [batch(1), batch(2)]))
        await until(lambda: ahead.driver.running, ahead, running)
        mine = set(ahead.driver.running)
        await ahead.make_way()
        states = engine.output_processor.request_states
        assert not mine & {state.external_req_id for state in states.values()}
        release.set()
        assert len(tokens(await running)) == SLOTS

    with_engine(work)


def test_a_real_request_finds_its_slot_though_a_launch_is_under_way() -> None:
    """Run-ahead that is being added, and not in the engine yet, must leave as well: the engine would be full of it."""

    async def work(engine: Any) -> None:
        ahead = RunAheadLLM(engine, slots=SLOTS, control=RunAheadController(EAGER), cost=CHEAP)
        adding, gate, add, release = asyncio.Event(), asyncio.Event(), engine.add_request, hold(engine)

        async def held(name: str, *args: Any, **options: Any) -> Any:
            if name.startswith("rolltree-ahead"):
                adding.set()
                await gate.wait()
            return await add(name, *args, **options)

        engine.add_request = held
        running = asyncio.create_task(ahead.generate(batch(0, longest=200), [batch(1), batch(2)]))
        # Alone: another real request that ended meanwhile would make room for run-ahead, rightly.
        await until(lambda: adding.is_set() and len(ahead.driver.real) == 1, ahead, running)
        entered, leave = asyncio.Semaphore(0), asyncio.Event()

        async def late(number: int) -> None:
            async with ahead.real(f"late {number}", 10):
                assert not ahead._readers
                entered.release()
                await leave.wait()

        late_ones = [asyncio.create_task(late(i)) for i in range(SLOTS - len(ahead.driver.real))]
        await asyncio.sleep(0)
        gate.set()
        for _ in late_ones:
            await entered.acquire()
        async with ahead._lock:  # whatever was being added is added, or was taken back
            assert not ahead.driver.running
        assert not any("ahead" in s.external_req_id for s in engine.output_processor.request_states.values())
        leave.set()
        await asyncio.gather(*late_ones)
        release.set()
        assert len(tokens(await running)) == SLOTS

    with_engine(work)


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async def work(engine: Any) -> None:
        ahead = RunAheadLLM(engine, slots=SLOTS, control=RunAheadController(EAGER), cost=CHEAP)
        release = hold(engine)
        running = asyncio.create_task(ahead.generate(batch(0, longest=200), [batch(1)]))
        await until(lambda: ahead.driver.running, ahead, running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not ahead.driver.running
        release.set()
        got = await ahead.generate(batch(1))
        assert [len(t) for t in tokens(got)] == [150] + [20] * (SLOTS - 1)
        assert not engine.output_processor.request_states

    with_engine(work)


def test_the_step_time_is_learned_where_none_is_given() -> None:
    async def work(engine: Any) -> None:
        ahead = RunAheadLLM(engine, slots=SLOTS)
        step = 0
        while ahead.driver.observer.observations <= 20:  # outputs of a slow front end come several steps at a time
            await ahead.generate(batch(step % 3), [batch(step % 3 + 1)])
            step += 1
        assert ahead.driver.observer.freeze() != ahead.driver.observer.prior

    with_engine(work)


def test_other_scheduling_is_refused() -> None:
    async def work(engine: Any) -> None:
        with pytest.raises(InvalidInputError, match="priority"):
            RunAheadLLM(engine, slots=SLOTS)

    with_engine(work, scheduling_policy="fcfs")
