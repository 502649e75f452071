"""OpenRLHF: the functions that build its Ray actor's arguments, vLLM's in the actor, and its sampling parameters.

Neither Ray nor an engine starts: stand-ins keep what they would be called with.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.demo.assets import load_tokenizer
from rolltree.demo.task import sample_problems
from tests.frameworks.tools import MODEL, WIDTH, width

vllm_engine = pytest.importorskip("openrlhf.trainer.ray.vllm_engine", exc_type=ImportError)

ENGINE = {
    "num_engines": 1, "tensor_parallel_size": 1, "pretrain": MODEL, "seed": 0, "full_determinism": False,
    "enable_prefix_caching": True, "enforce_eager": True, "max_model_len": 128, "gpu_memory_utilization": 0.1,
}  # fmt: skip


class Called(list):
    """Stands for what Ray would start: keeps what it is called with."""

    def options(self, **_: Any) -> Called:
        return self

    def remote(self, *_: Any, **given: Any) -> Any:
        self.append(given)
        return 0


def test_its_arguments_turn_drafts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both functions that make them: of the actor's arguments, and in the actor of vLLM's."""
    import vllm

    made, engines = Called(), []
    actor = vllm_engine.RolloutRayActor.__ray_metadata__.modified_class
    monkeypatch.setattr(vllm_engine, "RolloutRayActor", made)
    vllm_engine.create_vllm_engines(**ENGINE, shared_pg=object())
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    monkeypatch.setattr(vllm.AsyncLLMEngine, "from_engine_args", lambda args: engines.append(args) or Sleeper())
    asyncio.run(actor.__init__(object.__new__(actor), **made[0]))
    assert engines[0].speculative_config is None
    assert width(engines[0].create_engine_config()) == WIDTH
    monkeypatch.delenv("ROLLTREE_DRAFT")
    assert width(engines[0].create_engine_config()) == 0


class Sleeper:
    """Stands for an engine; the actor asks it one thing at the start."""

    async def is_sleeping(self) -> bool:
        return False


def test_its_requests_carry_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    requests = Called()
    engine = SimpleNamespace(generate_responses=requests, get_num_unfinished_requests=Called())
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    dispatch([engine])
    assert len(requests) == 2
    assert {request["sampling_params"].extra_args for request in requests} == {None}
    assert {request["sampling_params"].min_p for request in requests} == {0.0}


def dispatch(engines: list[Any]) -> list[Any]:
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    algo = SimpleNamespace(advantage=SimpleNamespace(is_correction_level="off"))
    args = SimpleNamespace(algo=algo, rollout=SimpleNamespace(n_samples_per_prompt=2))
    generator = SimpleNamespace(args=args, vllm_engines=engines, tokenizer=load_tokenizer())
    questions = [problem.prompt for problem in sample_problems(2, seed=7)]
    settings = {"temperature": 0.0, "max_new_tokens": 48, "max_len": 128}
    return list(SamplesGenerator._dispatch_prompts_to_vllm(generator, questions, [""] * 2, **settings))
