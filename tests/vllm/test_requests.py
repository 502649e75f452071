"""Requests of all kinds in one real engine: siblings, keys, marks, ends, aborts, edges, control, failures."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolltree.errors import InvalidInputError
from rolltree.vllm import Control
from tests.vllm.engines import WIDTH, accepted, engine, generate, prompts, proposer

LENGTH = 256


@pytest.fixture(name="shared", scope="module", params=("V1", "V2 async"))
def fixture_shared(request: pytest.FixtureRequest) -> Iterator[Any]:
    with engine(max_model_len=LENGTH, max_num_seqs=32, runner=request.param) as llm:
        yield llm


@pytest.fixture(name="llm")
def fixture_llm(shared: Any) -> Any:
    """The one engine of this module, with empty trees."""
    control = Control(shared)
    control.clear()
    control.resume()
    return shared


def option(**options: object) -> dict[str, object]:
    return {"extra_args": {"rolltree": options}}


def kept(llm: Any) -> dict[str, float]:
    """Statistics after everything finished was committed."""
    Control(llm).commit()
    return Control(llm).stats()


def test_siblings_draft_from_each_other_in_the_step(llm: Any) -> None:
    """The samples of one prompt, all new and all running, are drafted from one another."""
    generate(llm, prompts(1), n=16, temperature=1.0)
    assert Control(llm).stats()["accepted_sibling"] > 100


def test_a_running_sibling_is_drafted_from(llm: Any) -> None:
    """A request that starts later drafts from one that still runs; n > 1 and separate requests alike."""
    from vllm import SamplingParams

    prompt = prompts(1)[0]
    settings = SamplingParams(temperature=0.0, max_tokens=160, ignore_eos=True)
    core = llm.llm_engine
    core.add_request("first", prompt, settings)
    for _ in range(40):
        core.step()
    before = Control(llm).stats()
    core.add_request("second", prompt, settings)
    for _ in range(10):
        core.step()
    after = Control(llm).stats()
    core.abort_request(["first", "second"])
    drain(core)
    assert before["cache_rollouts"] == 0  # nothing had finished
    assert after["accepted_sibling"] - before["accepted_sibling"] > 20


def drain(core: Any) -> None:
    while core.has_unfinished_requests():
        core.step()


def test_nothing_leaks_between_prompts(llm: Any) -> None:
    """Each prompt's tree holds its own rollouts and nothing of the others', although rows were re-used."""
    inputs = prompts(48)
    texts = generate(llm, inputs)
    kept(llm)
    cache = proposer(llm).drafter.cache
    import numpy as np

    for row, (item, text) in enumerate(zip(inputs, texts, strict=True)):
        handle = cache.open(item["prompt_token_ids"], read_only=True)
        assert cache.longest_continuation(handle, np.array(text, np.int32)) == len(text)
        tree = cache.stats()
        other = np.array([*item["prompt_token_ids"], *texts[row - 1]], np.int32)
        assert cache.longest_continuation(handle, np.array(texts[row - 1], np.int32)) < len(texts[row - 1])
        assert tree.prompts == len(inputs)
        assert len(other)
        cache.close(handle)
    cache.check()


def test_keys_sessions_and_marks(llm: Any) -> None:
    """Requests share a tree by key or by session; validations are not remembered; opt-outs are left alone."""
    first, second = prompts(2)
    generate(llm, [first], **option(key="k", version=1))
    generate(llm, [second], **option(key="k", version=2))
    assert kept(llm)["cache_prompts"] == 1
    generate(llm, [first], **option(kind="validation"))
    stats = kept(llm)
    assert stats["cache_rollouts"] == 2
    assert stats["tokens_validation"] > 0
    generate(llm, [first], **option(draft=False, remember=False))
    assert kept(llm)["tokens"] == stats["tokens"]
    turn = generate(llm, [first], **option(session="s"))[0]
    longer = [*first["prompt_token_ids"], *turn[:-1], 9, 9, 9]
    generate(llm, [{"prompt_token_ids": longer}], max_tokens=20, **option(session="s"))
    assert kept(llm)["cache_prompts"] == stats["cache_prompts"]  # the tree of the first turn's prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ky": "k"}, "did you mean 'key'"), ({"version": -1}, "version = -1"), ("k", "must be a dictionary")],
)
def test_bad_options_fail_their_request_only(llm: Any, options: object, message: str) -> None:
    """Refused in the front end, by name; the engine goes on."""
    from vllm import SamplingParams

    bad = SamplingParams(max_tokens=4, extra_args={"rolltree": options})
    with pytest.raises(ValueError, match=f"(?i){message}"):
        llm.generate(prompts(1), bad, use_tqdm=False)
    assert len(generate(llm, prompts(2), max_tokens=4)) == 2


def test_overshoot_is_trimmed(llm: Any) -> None:
    """Neither text past max_tokens nor text past a stop string stays in a tree."""
    inputs = prompts(8)
    generate(llm, inputs)  # so that drafts run past the ends below
    long = {tuple(text) for text in generate(llm, inputs)}
    Control(llm).clear()
    generate(llm, inputs, max_tokens=21)
    generate(llm, inputs, max_tokens=21)
    assert kept(llm)["cache_tokens"] == sum(len(item["prompt_token_ids"]) + 2 * 21 for item in inputs)
    Control(llm).clear()
    tokenizer, stop = llm.get_tokenizer(), "gives"
    for _ in range(2):
        short = generate(llm, inputs, stop=[stop])
    ends = [next((n for n in range(len(text)) if stop in tokenizer.decode(text[:n])), len(text)) for text in short]
    short = [text[:end] for text, end in zip(short, ends, strict=True)]  # 0.28 returns the rest of the step, too
    stats = kept(llm)
    assert sum(map(len, short)) < sum(map(len, long)) / 2
    assert stats["cache_tokens"] == sum(
        len(i["prompt_token_ids"]) + 2 * len(s) for i, s in zip(inputs, short, strict=True)
    )


def test_max_model_len_is_a_wall(llm: Any) -> None:
    """Rows that reach the end, where vLLM skips the proposer for all, lose no text and break nothing."""
    inputs = prompts(6)
    settings = {"max_tokens": None, "ignore_eos": True}
    texts = generate(llm, inputs, **settings)
    assert [len(i["prompt_token_ids"]) + len(t) for i, t in zip(inputs, texts, strict=True)] == [LENGTH] * 6
    short = generate(llm, inputs, max_tokens=60, ignore_eos=True)
    assert short == [text[:60] for text in texts]
    mixed = generate(llm, [*inputs, *prompts(20)[6:]], **settings)  # others go on while some reach the wall
    assert mixed[:6] == texts
    assert kept(llm)["errors"] == 0
    proposer(llm).drafter.cache.check()


def test_abort_storm(llm: Any) -> None:
    """A thousand requests, aborted at random moments: the rest is right, nothing stays open."""
    from vllm import SamplingParams

    rng = random.Random(0)
    inputs = prompts(40)
    right = generate(llm, inputs, max_tokens=30)
    core, done, waiting = llm.llm_engine, {}, []
    settings = SamplingParams(temperature=0.0, max_tokens=30)
    for number in range(1000):
        id = f"storm-{number}"
        core.add_request(id, inputs[number % 40], settings)
        waiting.append(id)
        for output in core.step() if rng.random() < 0.4 else ():
            if output.finished:
                done[output.request_id] = list(output.outputs[0].token_ids)
        if rng.random() < 0.45:
            core.abort_request([waiting.pop(rng.randrange(len(waiting)))])
    while core.has_unfinished_requests():
        for output in core.step():
            if output.finished:
                done[output.request_id] = list(output.outputs[0].token_ids)
    whole = {id: text for id, text in done.items() if id in waiting}
    assert len(whole) > 300
    assert all(text == right[int(id.partition("-")[2]) % 40] for id, text in whole.items())
    stats = kept(llm)
    assert stats["errors"] == 0
    assert stats["cache_sessions"] == 0
    proposer(llm).drafter.cache.check()


def test_an_error_costs_a_step_its_drafts(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logged once, counted always, and the text is the same."""
    inputs = prompts(4)
    right = generate(llm, inputs)
    drafter = proposer(llm).drafter
    calls, draft = iter(range(10**6)), drafter.draft

    def broken(*args: Any) -> Any:
        if next(calls) % 5 == 4:
            raise RuntimeError("planted")
        return draft(*args)

    before = Control(llm).stats()
    monkeypatch.setattr(drafter, "draft", broken)
    assert generate(llm, inputs) == right
    after = kept(llm)
    assert after["errors"] > before["errors"]
    assert after["accepted"] > before["accepted"]
    drafter.cache.check()


def test_wild_drafts_are_cut(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids outside the vocabulary and drafts that are too long would kill the engine: they do not reach it."""
    inputs = prompts(4)
    right = generate(llm, inputs)
    drafter = proposer(llm).drafter
    draft = drafter.draft

    def wild(handles: Any, limits: Any) -> Any:
        batch = draft(handles, limits)
        batch.tokens[:, 1:] = 2**30
        batch.lengths[:] = WIDTH + 5
        return batch

    monkeypatch.setattr(drafter, "draft", wild)
    assert generate(llm, inputs) == right


def test_pause_version_and_stats(llm: Any) -> None:
    """Paused, nothing is drafted but text is remembered; versions only grow."""
    control, inputs = Control(llm), prompts(4)
    control.pause()
    before = accepted(llm)
    generate(llm, inputs)
    assert accepted(llm) == before
    assert kept(llm)["cache_rollouts"] == 4
    control.resume()
    generate(llm, inputs)
    assert accepted(llm) > before
    control.set_version(7)
    assert proposer(llm).drafter.cache.version == 7
    with pytest.raises(InvalidInputError, match="version = 3"):
        control.set_version(3)
    with pytest.raises(InvalidInputError, match="one of stats"):
        control._call("start")


def test_rollouts_are_loaded(llm: Any, tmp_path: Path) -> None:
    """A cold engine that was given yesterday's rollouts drafts from them at once."""
    inputs = prompts(8)
    texts = generate(llm, inputs)
    path = tmp_path / "rollouts.jsonl"
    lines = [
        {"prompt_id": str(row), "step": 0, "sample": 0, "token_ids": text, **item}
        for row, (item, text) in enumerate(zip(inputs, texts, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    control = Control(llm)
    control.clear()
    assert control.load(path) == 8
    before = accepted(llm)
    assert generate(llm, inputs) == texts
    assert accepted(llm) - before > sum(map(len, texts)) * 0.7
    with pytest.raises(InvalidInputError, match="exists"):
        control.load(tmp_path / "none.jsonl")


def test_counters_stand_beside_vllms(llm: Any) -> None:
    """In `get_metrics()` and in what Prometheus is given."""
    from prometheus_client import REGISTRY, generate_latest

    generate(llm, prompts(4))
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    assert values["vllm:rolltree_tokens"] > 0
    assert 0 < values["vllm:rolltree_accepted"] <= values["vllm:rolltree_drafted"]
    assert values["vllm:rolltree_cache_prompts"] >= 4  # sums over engines; one of another test may not be collected yet
    assert proposer(llm).drafter.cache.prompts == 4
    assert b"vllm:rolltree_accepted_total" in generate_latest(REGISTRY)


@pytest.mark.parametrize(
    "sampling",
    [
        {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
        {"structured_outputs": {"regex": "[0-9]{3}\\+[0-9]{3}"}},
        {"bad_words": ["then"]},
        {"logits_processors_free": True},
    ],
    ids=["penalties", "structured", "bad-words", "plain"],
)
def test_sampling_features_leave_greedy_text_alone(llm: Any, sampling: dict[str, Any]) -> None:
    """Undrafted (the first, cold pass of a lone prompt with drafting paused) and drafted text are the same."""
    from vllm.sampling_params import StructuredOutputsParams

    settings = {key: value for key, value in sampling.items() if key != "logits_processors_free"}
    if "structured_outputs" in settings:
        settings["structured_outputs"] = StructuredOutputsParams(**settings["structured_outputs"])
    control, inputs = Control(llm), prompts(4)
    control.pause()
    right = generate(llm, inputs, max_tokens=60, **settings)
    control.resume()
    before = accepted(llm)
    assert generate(llm, inputs, max_tokens=60, **settings) == right
    assert accepted(llm) > before


def test_logprobs_are_those_of_the_plain_engine(llm: Any) -> None:
    """Sampled and top log-probabilities with drafts, against those with drafting paused."""
    from vllm import SamplingParams

    settings = SamplingParams(temperature=0.0, max_tokens=60, logprobs=3, prompt_logprobs=1)
    control, inputs = Control(llm), prompts(4)

    def logprobs() -> list[float]:
        outputs = llm.generate(inputs, settings, use_tqdm=False)
        return [value.logprob for o in outputs for place in o.outputs[0].logprobs for value in place.values()]

    control.pause()
    right = logprobs()
    control.resume()
    assert logprobs() == pytest.approx(right, abs=1e-3)
