"""Engines of other shapes: too small a KV cache, another process, LoRA, bad settings, a vLLM that was repaired."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rolltree.errors import InvalidInputError
from rolltree.store import RolloutStore, identity
from rolltree.vllm import AsyncControl, Control, compat, compat_cpu, compat_v2, plugin
from tests.vllm.engines import (
    METHODS,
    OPTIONS,
    accepted,
    assert_same,
    engine,
    generate,
    logged,
    prompts,
    proposer,
    random_model,
    tell,
)


def test_preemption_changes_nothing() -> None:
    """A KV cache for six of sixteen requests: they are preempted and resumed, and the text is the same."""
    inputs = prompts(16)
    with engine("none", max_num_seqs=16) as llm:
        right = tell(llm, inputs)
    with engine(max_num_seqs=16, block_size=32, num_gpu_blocks_override=24, enable_prefix_caching=False) as llm:
        for _ in range(2):
            assert_same(right, generate(llm, inputs))
        preempted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        assert preempted["vllm:num_preemptions"] > 0
        Control(llm).commit()
        stats = Control(llm).stats()
        assert (stats["errors"], stats["cache_sessions"], stats["cache_rollouts"]) == (0, 0, 32)
        proposer(llm).drafter.cache.check()


def test_chunked_prefill_and_prefix_cache() -> None:
    """Prompts read in chunks, beside rows that decode, and prompts that are cached already."""
    inputs = prompts(12)
    head = inputs[0]["prompt_token_ids"]
    long = [{"prompt_token_ids": [*head * 6, *item["prompt_token_ids"]]} for item in inputs]
    with engine("none", max_num_seqs=8) as llm:
        right = tell(llm, long, max_tokens=50)
    with engine(max_num_seqs=8, max_num_batched_tokens=48) as llm:
        for _ in range(2):
            assert_same(right, generate(llm, long, max_tokens=50))
        assert accepted(llm) > 300
        assert Control(llm).stats()["errors"] == 0


def test_the_budget_switches_drafting_off(tmp_path: Path) -> None:
    """Where a step with drafts costs a hundred plain ones, no draft is made; by itself the engine learns the cost."""
    from rolltree import CostModel

    CostModel(base=1.0, token=0.1, ragged=100.0).save(tmp_path / "dear.json")
    with engine(additional_config={"rolltree": {"cost": str(tmp_path / "dear.json")}}) as llm:
        generate(llm, prompts(8))
        generate(llm, prompts(8))
        assert Control(llm).stats()["drafted"] == 0
    with engine(additional_config={"rolltree": {"cost": "observed"}}) as llm:
        generate(llm, prompts(8))
        generate(llm, prompts(8))
        observer = proposer(llm).observer
        assert observer.observations > 0  # whatever the machine's speed
        assert observer.freeze() != observer.prior


def test_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine core in a process of its own, under AsyncLLM: drafts, control and counters reach across."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    asyncio.run(_another_process())


async def _another_process() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    from rolltree.demo.assets import model_folder
    from vllm import AsyncEngineArgs, SamplingParams

    settings = AsyncEngineArgs(
        model=str(model_folder()),
        speculative_config=METHODS["rolltree"],
        additional_config={"rolltree": OPTIONS},
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=16,
    )
    earlier = shown()  # of the engines that this process had before
    llm = AsyncLLM.from_engine_args(settings)
    try:
        texts: list[list[int]] = []
        for epoch in range(2):
            for number, prompt in enumerate(prompts(4)):
                sampling = SamplingParams(temperature=0.0, max_tokens=60, extra_args={"rolltree": {"version": epoch}})
                async for output in llm.generate(prompt, sampling, request_id=f"{epoch}-{number}"):
                    final = list(output.outputs[0].token_ids)
                texts.append(final)
        assert texts[:4] == texts[4:]
        control = AsyncControl(llm)
        await control.commit()
        stats = await control.stats()
        assert stats["accepted"] > 100
        assert stats["cache_rollouts"] == 8
        assert shown() - earlier == stats["accepted"]
        await control.clear()
        assert (await control.stats())["cache_prompts"] == 0
    finally:
        llm.shutdown()


def shown() -> float:
    """Accepted tokens as Prometheus is told of them in this process."""
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value("vllm:rolltree_accepted_total") or 0.0


def test_lora(tmp_path: Path) -> None:
    """Requests of an adapter and of the base model share trees and keep their own text."""
    from vllm.lora.request import LoRARequest

    from vllm import SamplingParams

    folder = random_model(tmp_path / "model")
    write_adapter(tmp_path / "adapter")
    request = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
    inputs = [{"prompt_token_ids": [1, 5 + row, 9, 30]} for row in range(8)]
    sampling = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, detokenize=False)
    shape = {
        "model": folder,
        "skip_tokenizer_init": True,
        "max_model_len": 128,
        "enable_lora": True,
        "max_lora_rank": 8,
    }

    def texts(llm: Any) -> list[list[int]]:
        return [
            list(output.outputs[0].token_ids)
            for adapter in (None, request)
            for output in llm.generate(inputs, sampling, lora_request=adapter, use_tqdm=False)
        ]

    with engine("none", **shape) as llm:
        right = texts(llm)
    assert right[:8] != right[8:]
    with engine(**shape) as llm:
        assert [texts(llm) for _ in range(2)] == [right] * 2
        assert accepted(llm) > 0


def write_adapter(folder: Path, rank: int = 8, hidden: int = 64) -> None:
    """An adapter of `random_model`'s query projections, as peft would save it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (rank, hidden), "B": (hidden, rank)}
    weights = {name.format(layer, part): torch.randn(shape) for layer in range(2) for part, shape in shapes.items()}
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"additional_config": {"rolltree": {"windw": 3}}}, "Did you mean 'window'"),
        ({"additional_config": {"rolltree": {"cost": "free"}}}, "cost = 'free'"),
        ({"additional_config": {"rolltree": {"load": "none.store"}}}, "load = 'none.store'"),
        ({"additional_config": {"rolltree": {"store": "none/rollouts.db"}}}, "rolltree.store = 'none/rollouts.db'"),
        ({"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "pipeline_parallel_size = 2"),
    ],
)
def test_bad_settings_stop_the_start(settings: dict[str, Any], message: str) -> None:
    """By name, in the front end, before the model is loaded."""
    with pytest.raises(InvalidInputError, match=message), engine(**settings):
        pass


def test_doctor_proves_that_drafts_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `rolltree doctor --for vllm` looks at and runs; here it may take as long as the machine needs."""
    from rolltree.vllm import doctor
    from rolltree.vllm.doctor import doctor_lines, prove_lines

    monkeypatch.setattr(doctor, "SECONDS", None)

    assert [(line.name, line.state) for line in doctor_lines()] == [("vLLM proposer", "ok"), ("vLLM plugin", "ok")]
    (proof,) = prove_lines()
    assert proof.state == "ok", proof


def test_v2_runner_is_refused_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM is told to use a V2 runner that lacks what drafting needs, the sentence names the variable."""
    from vllm.config import VllmConfig

    compat.refuse_v2_runner()
    monkeypatch.setattr(compat_v2, "runner_fits", lambda: False)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    config = VllmConfig.__new__(VllmConfig)
    object.__setattr__(config, "speculative_config", _Speculative())
    with pytest.raises(InvalidInputError, match="VLLM_USE_V2_MODEL_RUNNER = '1': must be 0 or unset"):
        config._validate_v2_model_runner()


class _Speculative:
    method, model = "custom_class", compat.PROPOSER


def test_vllm_still_needs_the_cpu_fix() -> None:
    """When this fails, vLLM has repaired vllm#55005: drop `compat_cpu` for that version on."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("GPUs do not use this kernel")
    current_platform.import_kernels()
    assert compat_cpu.cpu_expand_is_wrong()


def test_top_k_does_nothing_to_no_rows() -> None:
    """When the stock one does it, too, drop the fix for that version on."""
    import torch
    from vllm.v1.sample.ops import topk_topp_sampler as ops

    compat.fix_cpu_top_k()
    logits, k = torch.empty(0, 5), torch.empty(0, dtype=torch.int32)
    assert ops.apply_top_k_top_p_pytorch(logits, k, None, allow_cpu_sync=True).shape == (0, 5)
    with pytest.raises(RuntimeError, match="numel"):
        ops.apply_top_k_only._rolltree_stock(logits, k)


def test_the_cpu_fix_is_in_place() -> None:
    """The kernel that runs is right for floats and integers."""
    import torch
    from vllm.utils import cpu_triton_utils

    plugin.register()
    out = torch.full((4,), -1.0)
    ends = torch.tensor([1, 4], dtype=torch.int32)
    cpu_triton_utils._expand_kernel_impl(out, torch.tensor([0.0, 0.7]), ends, 0.0, 1.0)
    assert out.tolist() == pytest.approx([1.0, 0.7, 0.7, 0.7])


def test_a_restarted_engine_drafts_from_what_the_first_one_kept(tmp_path: Path) -> None:
    """The first engine keeps all it generates, its last step's, too; another gets it back, by name or at the start."""
    inputs, path = prompts(6), str(tmp_path / "rollouts.db")
    with engine(additional_config={"rolltree": OPTIONS | {"store": path}}) as llm:
        texts = generate(llm, inputs)
        assert Control(llm).stats()["store_dropped"] == 0
    with RolloutStore(path) as store:
        assert sorted(rollout.token_ids.tolist() for rollout in store) == sorted(texts)
        vocab, model = store._writer.use(identity.known)
        assert (vocab > 0, Path(model).is_dir()) == (True, True)
    with engine(additional_config={"rolltree": OPTIONS | {"store": path}}) as llm, logged() as lines:
        assert Control(llm).expect(inputs) == 6
        proposer(llm).drafter.cache.wait()
        assert generate(llm, inputs) == texts
        assert accepted(llm) > sum(map(len, texts)) * 0.7
        Control(llm).commit()
        stats = Control(llm).stats()
        assert (stats["errors"], stats["cache_rebuilt_prompts"], stats["cache_rollouts"]) == (0, 6, 12)
        assert not [line for line in lines if "store" in line]
    with engine(additional_config={"rolltree": OPTIONS | {"load": path}}) as llm:
        assert generate(llm, inputs) == texts
        assert accepted(llm) > sum(map(len, texts)) * 0.7
