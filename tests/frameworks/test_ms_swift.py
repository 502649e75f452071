"""ms-swift: the functions that build engine arguments and sampling parameters of GRPO in colocate mode; no engine."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rolltree.cli.frameworks import FRAMEWORKS
from tests.frameworks.tools import MODEL, WIDTH, width

mixin = pytest.importorskip("swift.rlhf_trainers.rollout_mixin", exc_type=ImportError)

LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29633"}
ARGUMENTS = {
    "steps_per_generation": 1, "per_device_train_batch_size": 4, "vllm_max_num_seqs": 8, "vllm_enable_lora": False,
    "tuner_type": "full", "vllm_enable_prefix_caching": True, "vllm_enforce_eager": True, "sleep_level": 0,
    "vllm_limit_mm_per_prompt": None, "vllm_max_model_len": 256, "vllm_disable_cascade_attn": False,
    "vllm_mm_processor_cache_gb": None, "vllm_engine_kwargs": None, "num_generations": 4, "temperature": 0.0,
    "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1, "vllm_tensor_parallel_size": 1, "use_vllm": True,
    "max_completion_length": 48, "async_generate": False, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
    "repetition_penalty": 1.0, "stop_words": [],
}  # fmt: skip


@pytest.fixture(name="trainer")
def fixture_trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of its trainer as its own functions read: arguments, the model, the template."""
    from swift.model import get_model_processor
    from swift.template import get_template

    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    model, processor = get_model_processor(MODEL, model_type="qwen2", torch_dtype=torch.float32, device_map="cpu")
    processor.chat_template = "{{ messages[0]['content'] }}"
    trainer = SimpleNamespace(
        args=SimpleNamespace(**ARGUMENTS), model=model, template=get_template(processor, template_type="dummy"),
        accelerator=SimpleNamespace(process_index=0), vllm_version_ge_0_10_2=True,
    )  # fmt: skip
    mixin.RolloutTrainerMixin._prepare_rollout_params(trainer)
    return trainer


def test_its_arguments_turn_drafts_on(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from swift.infer_engine import GRPOVllmEngine

    monkeypatch.setattr(GRPOVllmEngine, "_prepare_engine", lambda engine: None)  # which starts it
    engine = mixin.RolloutTrainerMixin._prepare_vllm_engine(trainer)
    assert width(engine.engine_args.create_engine_config()) == WIDTH
    monkeypatch.delenv("ROLLTREE_DRAFT")
    assert width(engine.engine_args.create_engine_config()) == 0
    trainer.args.vllm_engine_kwargs = json.loads(shlex.split(FRAMEWORKS["ms-swift"].own)[1])
    engine = mixin.RolloutTrainerMixin._prepare_vllm_engine(trainer)
    assert width(engine.engine_args.create_engine_config()) == WIDTH
    sampling = engine._prepare_generation_config(trainer.request_config)
    assert (sampling.temperature, sampling.max_tokens, sampling.min_p) == (0.0, 48, 0.0)
    assert sampling.extra_args is None  # `RequestConfig` is closed: no marks
