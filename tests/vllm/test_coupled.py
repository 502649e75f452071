"""Coupled sampling in real vLLM, V1 and, where it is new enough, V2: the same seed gives the same rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from rolltree.serving.places import Places
from rolltree.vllm import Control
from tests.vllm.engines import FIRST_V2, VERSION, engine, generate, model_runner, preemptions, prompts
from tests.vllm.plain import COUNT, COUPLED, SEED, seeded, undrafted

ROWS = 24
ALL = ("V1", "V2", "V2 async")


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_without_coupling_a_seed_gives_another_rollout(runner: str) -> None:
    """So that the tests below could fail: vLLM's standard verification draws otherwise where there are drafts."""
    with engine(runner=runner) as llm:
        assert seeded(llm, 1.0) != seeded(llm, 1.0)


@pytest.mark.parametrize("runner", ALL)
def test_preempted_requests_keep_text_and_session(runner: str, sampled: dict[float, list[list[int]]]) -> None:
    """With memory for a few requests they are preempted, and come back with their id and a longer text to read."""
    small = {"num_gpu_blocks_override": 10, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 192}
    right = sampled[1.0]
    with engine(runner=runner, additional_config=COUPLED, **small) as llm:
        before = preemptions(llm)
        for _ in range(2):
            assert seeded(llm, 1.0) == right
        Control(llm).commit()
        stats = Control(llm).stats()
        assert preemptions(llm) > before
    assert stats["errors"] == 0
    texts = sum(len(item["prompt_token_ids"]) + 2 * len(text) for item, text in zip(prompts(COUNT), right, strict=True))
    assert stats["cache_tokens"] == texts  # nothing twice, nothing lost


@pytest.fixture(name="coupled", scope="module", params=ALL)
def fixture_coupled(request: pytest.FixtureRequest, sampled: dict[float, list[list[int]]]) -> Iterator[Any]:
    """An engine with coupled sampling; after `sampled`, whose engine must have ended."""
    assert sampled
    with engine(runner=request.param, additional_config=COUPLED) as llm:
        yield llm


def test_a_seed_gives_the_same_rollout_with_drafts(coupled: Any, sampled: dict[float, list[list[int]]]) -> None:
    """Token for token that of V2 without drafts, in both runners, whatever the cache holds; paused, too."""
    for _ in range(3):
        for temperature, right in sampled.items():
            assert seeded(coupled, temperature) == right
    assert undrafted(coupled, 1.0) == sampled[1.0]
    stats = Control(coupled).stats()
    assert stats["errors"] == stats["derived_seeds"] == 0
    assert stats["accepted"] > 1000


FEATURES: dict[str, dict[str, Any]] = {
    "filters": {"top_k": 20, "top_p": 0.9, "logprobs": 3, "prompt_logprobs": 1},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "logprobs": 0},
    "bad words": {"bad_words": ["then", "gives"]},
    "structured": {"regex": "[0-9]{3}\\+[0-9]{3}(then|gives)[0-9]{9}"},
    "allowed": {"allowed_token_ids": list(range(0, 48, 2))},
    "least": {},
    "stop": {"stop": ["gives"]},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_what_a_request_asks_for_goes_with_coupling(coupled: Any, feature: str) -> None:
    """Text and log-probabilities of seeded samples without drafts, cold, and warm."""
    control = Control(coupled)
    control.clear()
    control.pause()
    right = asked(coupled, feature)
    control.resume()
    before = control.stats()
    for _ in range(3):
        texts, scores = asked(coupled, feature)
        assert texts == right[0]
        np.testing.assert_allclose(scores, right[1], atol=1e-3)
    after = control.stats()
    assert after["accepted"] - before["accepted"] > 30
    assert after["errors"] == before["errors"]


def asked(llm: Any, feature: str) -> tuple[list[list[int] | str], list[float]]:
    """Rollouts, and the log-probabilities of all that was asked for."""
    from vllm.sampling_params import StructuredOutputsParams

    from vllm import SamplingParams

    options = dict(FEATURES[feature])
    if "regex" in options:
        options["structured_outputs"] = StructuredOutputsParams(regex=options.pop("regex"))
    least = [0] * ROWS
    if feature == "least":  # where an end is as likely as can be: V1 masks it too long where drafts cross the minimum
        texts = seeded(llm, 1.0)
        options["stop_token_ids"] = [Counter(token for text in texts for token in text).most_common(1)[0][0]]
        least = list(range(5, 5 + ROWS))
    settings = [
        SamplingParams(temperature=0.7, seed=SEED + i, max_tokens=60, min_tokens=least[i], **options)
        for i in range(ROWS)
    ]
    outputs = llm.generate(prompts(ROWS), settings, use_tqdm=False)
    places = [place for o in outputs for place in [*(o.outputs[0].logprobs or ()), *(o.prompt_logprobs or ())] if place]
    said = [_said(output.outputs[0], feature) for output in outputs]
    return said, [v.logprob for place in places for v in place.values()]


def _said(sample: Any, feature: str) -> list[int] | str:
    """Tokens; where vLLM returns those behind a stop string too (before 0.32), the text, which ends before it."""
    return sample.text if feature == "stop" and VERSION < FIRST_V2 else list(sample.token_ids)


def test_unseeded_samples_are_drawn_anew(coupled: Any) -> None:
    """Without a seed each request gets one: two samples of a prompt differ, and so do two calls."""
    before = Control(coupled).stats()["derived_seeds"]
    first, second = (generate(coupled, prompts(2), temperature=1.0, n=4) for _ in range(2))
    assert len({tuple(text) for text in (*first, *second)}) == 16
    assert Control(coupled).stats()["derived_seeds"] - before == 16


def test_samples_of_a_prompt_are_a_function_of_engine_and_prompt(coupled: Any) -> None:
    """Drafted for and sent together, or neither of both, in another order and with other requests in between."""
    found = []
    for is_drafted in (True, False):
        forget_places(coupled)
        with loaded(coupled, is_drafted=is_drafted) as before:
            found.append(groups(coupled, together=is_drafted))
            drafted = Control(coupled).stats()["accepted"] - before
            assert (drafted > 100) == is_drafted
    assert found[0] == found[1]
    assert all(sum(group.values()) == 4 == len(group) for group in found[0])


def forget_places(llm: Any) -> None:
    """Count requests from 0 on, as an engine does that is started again."""
    runner = model_runner(llm)
    (getattr(runner, "speculator", None) or runner.drafter).seeds._places = Places()


@contextmanager
def loaded(llm: Any, *, is_drafted: bool) -> Iterator[float]:
    """Drafting or not, with trees that hold earlier rollouts of the prompts, or of none."""
    control = Control(llm)
    control.clear()
    if is_drafted:
        generate(llm, prompts(COUNT), temperature=0)
    else:
        control.pause()
    yield control.stats()["accepted"]
    control.resume()


def groups(llm: Any, *, together: bool) -> list[Counter[tuple[int, ...]]]:
    """Four samples of each prompt: all of them in one call, or in many, backwards, beside a validation of each."""
    if together:
        texts = generate(llm, prompts(COUNT), temperature=1.0, n=4)
        return [Counter(map(tuple, texts[4 * i : 4 * i + 4])) for i in range(COUNT)]
    found = [Counter[tuple[int, ...]]() for _ in range(COUNT)]
    for count in (1, 3):
        for i in reversed(range(COUNT)):
            generate(llm, [prompts(COUNT)[i]], temperature=1.0, extra_args={"rolltree": {"kind": "validation"}})
            found[i].update(map(tuple, generate(llm, [prompts(COUNT)[i]] * count, temperature=1.0)))
    return found
