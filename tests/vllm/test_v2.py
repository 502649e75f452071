"""vLLM's V2 model runner, by the stand-ins of `tests.vllm.v2` on a CPU, and coupled sampling in both runners."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rolltree._native import murmur3_exponential
from rolltree.vllm import Control
from rolltree.vllm.coupled_v1 import pick, pick_on_device
from tests.vllm.engines import OPTIONS, Told, assert_same, engine, generate, prompts, tell
from tests.vllm.v2 import kernels
from tests.vllm.v2.no_triton import v2_on_cpu

COUNT, ROWS, SEED = 12, 24, 100
V2 = ("V2", "V2 async")
ALL = ("V1", *V2)
COUPLED = {"rolltree": OPTIONS | {"coupled": True}}


@pytest.fixture(name="greedy", scope="module")
def fixture_greedy() -> list[Told]:
    with engine("none", runner="V2") as llm:
        return tell(llm, prompts(COUNT))


@pytest.mark.parametrize("runner", V2)
def test_greedy_text_is_that_of_the_plain_engine(runner: str, greedy: list[Told]) -> None:
    """Cold and warm; in a warm step rows have drafts of several tokens, which were verified and no more."""
    with engine(runner=runner) as llm:
        for _ in range(3):
            assert_same(greedy, generate(llm, prompts(COUNT)))
            llm.reset_prefix_cache()  # as a trainer does behind a weight update
        stats = Control(llm).stats()
    assert (stats["errors"], stats["inferred_versions"]) == (0, 2)
    assert stats["accepted"] > 1000
    assert stats["tokens_per_step"] > 2


def seeded(llm: Any, temperature: float) -> list[list[int]]:
    """Rollouts with a seed each, with and without a filter; some end at a stop token, some have one token."""
    from vllm import SamplingParams

    settings = [
        SamplingParams(
            temperature=temperature,
            seed=SEED + i,
            max_tokens=(120, 33, 1, 90)[i % 4],
            top_k=20 if i % 3 == 1 else 0,
            top_p=0.9 if i % 3 == 2 else 1.0,
            presence_penalty=0.5 if i == 5 else 0.0,
            ignore_eos=i % 2 == 0,
        )
        for i in range(COUNT)
    ]
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts(COUNT), settings, use_tqdm=False)]


@pytest.fixture(name="sampled", scope="module")
def fixture_sampled() -> dict[float, list[list[int]]]:
    with engine("none", runner="V2") as llm:
        return {temperature: seeded(llm, temperature) for temperature in (1.0, 0.7)}


def test_without_coupling_a_seed_gives_another_rollout(sampled: dict[float, list[list[int]]]) -> None:
    """So that the test above could fail: vLLM's standard verification draws otherwise where there are drafts."""
    with engine(runner="V2") as llm:
        seeded(llm, 1.0)
        assert seeded(llm, 1.0) != sampled[1.0]


@pytest.mark.parametrize("runner", ALL)
def test_preempted_requests_keep_text_and_session(runner: str, sampled: dict[float, list[list[int]]]) -> None:
    """With memory for a few requests they are preempted, and come back with their id and a longer text to read."""
    small = {"num_gpu_blocks_override": 10, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 192}
    with engine(runner=runner, additional_config=COUPLED, **small) as llm:
        before = preemptions(llm)
        for _ in range(2):
            assert seeded(llm, 1.0) == sampled[1.0]
        Control(llm).commit()
        stats = Control(llm).stats()
        assert preemptions(llm) > before
    assert stats["errors"] == 0
    texts = sum(
        len(item["prompt_token_ids"]) + 2 * len(text) for item, text in zip(prompts(COUNT), sampled[1.0], strict=True)
    )
    assert stats["cache_tokens"] == texts  # nothing twice, nothing lost


def preemptions(llm: Any) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def test_drafts_follow_vllms_own_noise() -> None:
    """The core's noise is that of the sampler; the stand-in here is compared with triton's interpreter elsewhere."""
    drawn = random.Random(0)
    for _ in range(200):
        seed, position = drawn.getrandbits(64) - 2**63, drawn.randrange(1 << 15)
        tokens = np.array(drawn.sample(range(150_000), 8))
        ours = [-math.log(murmur3_exponential(seed % 2**64, position, int(token))) for token in tokens]
        np.testing.assert_allclose(ours, kernels.gumbel(seed, position, tokens), atol=1e-3)


def test_a_device_draws_as_the_core_does() -> None:
    """V1 on a device asks the kernel of V2's sampler, whose stand-in this is; the core has its floats."""
    torch.manual_seed(0)
    logits = torch.randn(50, 3000)
    seeds, positions = np.arange(50, dtype=np.int64) * 10**17 - 10**18, np.arange(50, dtype=np.int64)
    with v2_on_cpu(async_scheduling=False):
        drawn = pick_on_device(logits, seeds, positions)
    assert drawn.tolist() == pick(logits, seeds, positions).tolist()


def test_the_v1_runner_stays_the_default() -> None:
    """V2 ran on a CPU only: it is taken where it is asked for."""
    with engine() as llm:
        assert not llm.llm_engine.vllm_config.use_v2_model_runner


@pytest.fixture(name="coupled", scope="module", params=ALL)
def fixture_coupled(request: pytest.FixtureRequest, sampled: dict[float, list[list[int]]]) -> Iterator[Any]:
    """An engine with coupled sampling; after `sampled`, whose engine must have ended."""
    assert sampled
    with engine(runner=request.param, additional_config=COUPLED) as llm:
        yield llm


def test_a_seed_gives_the_same_rollout_with_drafts(coupled: Any, sampled: dict[float, list[list[int]]]) -> None:
    """Token for token that of V2 without drafts, in both runners, whatever the cache holds."""
    for _ in range(3):
        for temperature, right in sampled.items():
            assert seeded(coupled, temperature) == right
    stats = Control(coupled).stats()
    assert stats["errors"] == 0
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


def asked(llm: Any, feature: str) -> tuple[list[list[int]], list[float]]:
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
    return [list(o.outputs[0].token_ids) for o in outputs], [v.logprob for place in places for v in place.values()]


def test_unseeded_samples_are_drawn_anew(coupled: Any) -> None:
    """Without a seed each request gets one: two samples of a prompt differ, and so do two calls."""
    first, second = (generate(coupled, prompts(2), temperature=1.0, n=4) for _ in range(2))
    assert len({tuple(text) for text in (*first, *second)}) == 16
