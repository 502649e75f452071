"""Drafting that waits in the device's stream, in vLLM's V2 runner on a CPU: a thread plays the stream."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving.streamed import StreamedCore
from rolltree.sharing.exchange import Exchange
from rolltree.store import RolloutStore
from rolltree.vllm import Control
from tests.sharing_tools import Here, attach_port, trip
from tests.vllm.engines import (
    OPTIONS,
    Told,
    assert_same,
    engine,
    generate,
    logged,
    preemptions,
    prompts,
    proposer,
)
from tests.vllm.plain import COUNT, seeded
from tests.vllm.v2.stream import stream_on_cpu

STREAM = OPTIONS | {"wait": "stream"}
WAYS = (("V2", False), ("V2 async", False), ("V2 async", True))
"""Runner, and whether the stream is late: nothing is known of a step before the next one begins."""


@contextmanager
def streaming(
    runner: str = "V2 async", *, late: bool = False, options: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Any]:
    """An engine whose steps are done in a stream; all of them were when it ends."""
    config = {"rolltree": STREAM | (options or {})}
    with stream_on_cpu(late=late) as stream, engine(runner=runner, additional_config=config, **settings) as llm:
        yield llm
        assert isinstance(proposer(llm), StreamedCore)
        assert stream.launched >= Control(llm).stats()["steps"] > 0


def texts_in_cache(llm: Any) -> int:
    """Tokens of prompts and rollouts in the trees after all that has ended was committed."""
    Control(llm).commit()
    proposer(llm).drafter.cache.check()
    return int(Control(llm).stats()["cache_tokens"])


def tokens_of(rollouts: list[list[int]], times: int = 1) -> int:
    """Tokens that the trees should hold: each prompt once, each rollout as often as it was generated."""
    return sum(
        len(item["prompt_token_ids"]) + times * len(text)
        for item, text in zip(prompts(len(rollouts)), rollouts, strict=True)
    )


@pytest.mark.parametrize(("runner", "late"), WAYS)
def test_greedy_text_is_that_of_the_plain_engine(runner: str, late: bool, greedy: list[Told]) -> None:
    """Cold and warm, however far the stream is behind."""
    with streaming(runner, late=late) as llm:
        for _ in range(3):
            assert_same(greedy, generate(llm, prompts(COUNT)))
            llm.reset_prefix_cache()
        stats = Control(llm).stats()
        assert (stats["errors"], stats["inferred_versions"], stats["late_steps"]) == (0, 2, 0)
        assert stats["accepted"] > 1000
        assert stats["tokens_per_step"] > 2


@pytest.mark.parametrize("late", [False, True])
def test_seeded_text_is_that_of_the_plain_engine(late: bool, sampled: dict[float, list[list[int]]]) -> None:
    """Coupled, with memory for so few requests that they are preempted: the same text, and in the trees once."""
    small = {"num_gpu_blocks_override": 10, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 192}
    with streaming(late=late, options={"coupled": True}, **small) as llm:
        before = preemptions(llm)
        for _ in range(2):
            assert seeded(llm, 1.0) == sampled[1.0]
        assert texts_in_cache(llm) == tokens_of(sampled[1.0], times=2)
        stats = Control(llm).stats()
        assert preemptions(llm) > before
        assert (stats["errors"], stats["cache_sessions"]) == (0, 0)
        assert stats["accepted"] > 300


def test_a_store_gets_every_rollout(greedy: list[Told], tmp_path: Path) -> None:
    """What the stream took in is in the store, token for token, and trees come back from it."""
    path = tmp_path / "rollouts.store"
    options = {"store": str(path), "store_rebuild": "blocking"}
    with streaming(options=options) as llm:
        texts = generate(llm, prompts(COUNT))
        Control(llm).commit()
    with RolloutStore(path) as store:
        kept = sorted(list(map(int, rollout.token_ids)) for rollout in store)
    assert kept == sorted(texts)
    with streaming(options=options) as llm:
        assert_same(greedy, generate(llm, prompts(COUNT)))
        assert Control(llm).stats()["tokens_per_step"] > 3


def shares(llm: Any, exchange: Exchange, name: str) -> StreamedCore:
    """Let an engine share by an exchange in this process; its core."""
    core: StreamedCore = proposer(llm)
    core.options = replace(core.options, share="ray")
    attach_port(SimpleNamespace(core=core), Here(exchange), name)
    return core


def test_an_engine_that_shares_tells_each_rollout_once(greedy: list[Told]) -> None:
    """By an exchange in this process; how much of it the second engine gets in time, no verdict depends on."""
    texts, exchange = list[list[list[int]]](), Exchange()
    with streaming(late=True) as llm:
        core = shares(llm, exchange, "one")
        texts.append(generate(llm, prompts(COUNT)))
        Control(llm).commit()
        trip(SimpleNamespace(core=core))
        told = sum(map(len, texts[0]))
        assert core.stats()["shared_sent"] == told
    with streaming(late=True) as llm:
        core = shares(llm, exchange, "other")
        texts.append(generate(llm, prompts(COUNT)))
        Control(llm).commit()
        assert core.stats()["errors"] == 0
        core.drafter.cache.check()
        assert 0 <= core.stats()["shared_received"] <= told
    for found in texts:
        assert_same(greedy, found)


def test_the_line_of_the_start_and_refusals(greedy: list[Told], monkeypatch: pytest.MonkeyPatch) -> None:
    """The banner says where drafting waits; an argument that cannot be followed is refused, a variable is left out."""
    assert greedy
    with logged() as lines, streaming() as llm:
        generate(llm, prompts(1))
    assert any("Model runner V2 (drafting waits in the device's stream), async scheduling." in line for line in lines)
    refused = engine(runner="V2", additional_config={"rolltree": STREAM})
    with pytest.raises((InvalidInputError, ValueError, RuntimeError), match="device of type 'cpu'"), refused:
        pass
    monkeypatch.setenv("ROLLTREE_WAIT", "stream")
    with logged() as lines, engine(runner="V2") as llm:
        assert not isinstance(proposer(llm), StreamedCore)
        generate(llm, prompts(1))
    assert sum("ROLLTREE_WAIT=stream is not used on a device of type 'cpu'" in line for line in lines) == 1


@pytest.fixture(name="shared", scope="module")
def fixture_shared(greedy: list[Told]) -> Iterator[Any]:
    """An engine for the tests below, after `greedy`, whose engine must have ended; the stream is late."""
    assert greedy
    with streaming(late=True, max_num_seqs=32) as llm:
        yield llm


@pytest.fixture(name="llm")
def fixture_llm(shared: Any) -> Any:
    Control(shared).clear()
    Control(shared).resume()
    return shared


def test_what_stands_behind_an_end_is_not_remembered(llm: Any) -> None:
    """A stop token, a stop string, `max_tokens`: drafts run behind them, text behind them is in no tree."""
    whole = generate(llm, prompts(COUNT))
    Control(llm).clear()
    for sampling in ({"stop_token_ids": [whole[0][40]]}, {"stop": ["gives"]}, {"max_tokens": 37}, {"min_tokens": 30}):
        Control(llm).clear()
        for times in (1, 2):
            texts = generate(llm, prompts(COUNT), **sampling)
            assert texts_in_cache(llm) == tokens_of(texts, times=times), sampling
        assert any(len(text) < len(right) for text, right in zip(texts, whole, strict=True)) or "min_tokens" in sampling


def test_aborts(llm: Any) -> None:
    """Requests that are aborted at any moment leave no session behind, and the others' text is right."""
    from vllm import SamplingParams

    drawn, core = random.Random(0), llm.llm_engine
    settings = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    running: list[str] = []
    inputs = prompts(COUNT)
    for step in range(200):
        if step < 150 and drawn.random() < 0.5:
            id = core.add_request(f"r{step}", inputs[step % COUNT], settings)
            running.append(str(id or f"r{step}"))
        core.step()
        if running and drawn.random() < 0.3:
            core.abort_request([running.pop(drawn.randrange(len(running)))])
    while core.has_unfinished_requests():
        core.step()
    right = generate(llm, inputs, max_tokens=100, ignore_eos=True)
    texts_in_cache(llm)
    stats = Control(llm).stats()
    assert (stats["errors"], stats["cache_sessions"]) == (0, 0)
    Control(llm).pause()
    assert generate(llm, inputs, max_tokens=100, ignore_eos=True) == right


def test_a_failing_step_costs_its_drafts_alone(llm: Any, greedy: list[Told], monkeypatch: pytest.MonkeyPatch) -> None:
    """The native call is given a row of no text now and then: it has no drafts, its text comes with the next step's."""
    core = proposer(llm)
    fill, calls = core.book.fill, iter(range(10**6))

    def broken(turn: Any, rows: Any) -> None:
        fill(turn, rows)
        if next(calls) % 10 == 4:
            turn.prompts[0] = -1

    assert_same(greedy, generate(llm, prompts(COUNT)))
    before = Control(llm).stats()
    monkeypatch.setattr(core.book, "fill", broken)
    texts = generate(llm, prompts(COUNT))
    assert_same(greedy, texts)
    monkeypatch.undo()
    assert texts_in_cache(llm) == tokens_of(texts, times=2)
    after = Control(llm).stats()
    assert 2 <= after["errors"] - before["errors"] < 16
    assert after["accepted"] - before["accepted"] > 500
    assert not core.paused


def test_a_host_that_fails_costs_a_step_its_drafts(
    llm: Any, greedy: list[Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own part raises before the launch and behind it: counted, all starts anew, the text is the same."""
    core = proposer(llm)
    calls = iter(range(10**6))

    def sometimes(original: Any) -> Any:
        def broken(*args: Any) -> Any:
            if next(calls) % 20 == 7:
                raise RuntimeError("planted")
            return original(*args)

        return broken

    before = Control(llm).stats()
    monkeypatch.setattr(core.book, "took", sometimes(core.book.took))
    monkeypatch.setattr(core, "_stream_step", sometimes(core._stream_step))
    for _ in range(2):
        assert_same(greedy, generate(llm, prompts(COUNT)))
    monkeypatch.undo()
    texts_in_cache(llm)
    after = Control(llm).stats()
    assert after["errors"] - before["errors"] > 1
    assert after["accepted"] - before["accepted"] > 100
    assert after["cache_sessions"] == 0


def test_structured_output_and_penalties(llm: Any) -> None:
    """What changes logits goes with it: the text is that with drafting paused."""
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex="[0-9]{3}\\+[0-9]{3}(then|gives)[0-9]{9}")
    for sampling in ({"structured_outputs": grammar}, {"presence_penalty": 0.5, "repetition_penalty": 1.3}):
        control = Control(llm)
        control.pause()
        right = generate(llm, prompts(4), max_tokens=60, **sampling)
        control.resume()
        before = control.stats()
        for _ in range(3):
            assert generate(llm, prompts(4), max_tokens=60, **sampling) == right
        after = control.stats()
        assert after["accepted"] - before["accepted"] > 20
        assert after["errors"] == before["errors"]


def test_keys_marks_and_requests_that_are_left_alone(llm: Any) -> None:
    """Options of requests count as with `wait: host`."""

    def option(**options: object) -> dict[str, object]:
        return {"extra_args": {"rolltree": options}}

    generate(llm, prompts(4), **option(kind="validation"))
    assert texts_in_cache(llm) == sum(len(item["prompt_token_ids"]) for item in prompts(4))
    generate(llm, prompts(4), **option(draft=False))
    before = Control(llm).stats()
    generate(llm, prompts(4), **option(draft=False))
    after = Control(llm).stats()
    assert after["drafted"] == before["drafted"]
    assert after["tokens_validation"] > 0
    assert texts_in_cache(llm) > before["cache_tokens"]
