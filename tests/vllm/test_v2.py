"""vLLM's V2 model runner, by the stand-ins of `tests.vllm.v2` on a CPU."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from rolltree._native import murmur3_exponential
from rolltree.vllm import Control
from rolltree.vllm.coupled_v1 import pick, pick_on_device
from tests.vllm.engines import Told, assert_same, engine, generate, prompts
from tests.vllm.plain import COUNT
from tests.vllm.v2 import kernels
from tests.vllm.v2.no_triton import v2_on_cpu

V2 = ("V2", "V2 async")


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
