"""vLLM's V2 model runner: the same text by seed and without; by the stand-ins of `tests.vllm.v2` on a CPU."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from rolltree._native import murmur3_exponential
from rolltree.errors import InvalidInputError
from rolltree.vllm import Control
from tests.vllm.engines import OPTIONS, Told, assert_same, engine, generate, prompts, tell
from tests.vllm.v2 import kernels

COUNT, SEED = 12, 100
V2 = ("V2", "V2 async")
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


@pytest.mark.parametrize("runner", V2)
def test_a_seed_gives_the_same_rollout_with_drafts(runner: str, sampled: dict[float, list[list[int]]]) -> None:
    """Coupled: whatever the cache holds, token for token; in the third epoch nearly all is drafted."""
    with engine(runner=runner, additional_config=COUPLED) as llm:
        for _ in range(3):
            for temperature, right in sampled.items():
                assert seeded(llm, temperature) == right
        stats = Control(llm).stats()
    assert stats["errors"] == 0
    assert stats["accepted"] > 1000


def test_without_coupling_a_seed_gives_another_rollout(sampled: dict[float, list[list[int]]]) -> None:
    """So that the test above could fail: vLLM's standard verification draws otherwise where there are drafts."""
    with engine(runner="V2") as llm:
        seeded(llm, 1.0)
        assert seeded(llm, 1.0) != sampled[1.0]


@pytest.mark.parametrize("runner", V2)
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


def test_unseeded_samples_are_drawn_anew() -> None:
    """Without a seed vLLM draws one for each request: coupled or not, two samples of a prompt differ."""
    with engine(runner="V2", additional_config=COUPLED) as llm:
        first, second = (generate(llm, prompts(2), temperature=1.0, n=4) for _ in range(2))
    assert first != second


def test_coupling_needs_the_v2_runner() -> None:
    with pytest.raises(InvalidInputError, match="coupled"), engine(additional_config=COUPLED):
        pass


def test_drafts_follow_vllms_own_noise() -> None:
    """The core's noise is that of the sampler; the stand-in here is compared with triton's interpreter elsewhere."""
    drawn = random.Random(0)
    for _ in range(200):
        seed, position = drawn.getrandbits(64) - 2**63, drawn.randrange(1 << 15)
        tokens = np.array(drawn.sample(range(150_000), 8))
        ours = [-math.log(murmur3_exponential(seed % 2**64, position, int(token))) for token in tokens]
        np.testing.assert_allclose(ours, kernels.gumbel(seed, position, tokens), atol=1e-3)


def test_the_v1_runner_stays_the_default() -> None:
    """V2 ran on a CPU only: it is taken where it is asked for."""
    with engine() as llm:
        assert not llm.llm_engine.vllm_config.use_v2_model_runner
