"""What vLLM generates without drafts, which engines that draft are compared with: one engine for all tests of a run."""

from __future__ import annotations

from typing import Any

import pytest

from rolltree.vllm import Control
from tests.vllm.engines import FIRST_V2, OPTIONS, VERSION, Told, engine, prompts, tell

COUNT, SEED = 12, 100
TEMPERATURES = (1.0, 0.7)
COUPLED = {"rolltree": OPTIONS | {"coupled": True}}


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


def undrafted(llm: Any, temperature: float) -> list[list[int]]:
    """What an engine makes of the seeds while drafting is paused."""
    control = Control(llm)
    control.pause()
    texts = seeded(llm, temperature)
    control.resume()
    return texts


@pytest.fixture(name="greedy", scope="session")
def fixture_greedy() -> list[Told]:
    """Of V2, greedy."""
    with engine("none", runner="V2") as llm:
        return tell(llm, prompts(COUNT))


@pytest.fixture(name="sampled", scope="session")
def fixture_sampled() -> dict[float, list[list[int]]]:
    """What V2 samples without speculation; where its runner is too old for that, what V1 does while it is paused."""
    if VERSION < FIRST_V2:
        with engine(additional_config=COUPLED) as llm:
            return {temperature: undrafted(llm, temperature) for temperature in TEMPERATURES}
    with engine("none", runner="V2") as llm:
        return {temperature: seeded(llm, temperature) for temperature in TEMPERATURES}
