"""Engines of the tests: the demo's trained model or a small random one, drafting with a named method."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rolltree.demo.assets import PROMPT_SEED, load_tokenizer, model_folder
from rolltree.demo.task import sample_problems
from rolltree.vllm import hooks
from tests.vllm.v2.no_triton import v2_on_cpu

WIDTH = 8
METHODS: dict[str, dict[str, object] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3},
    "suffix": {"method": "suffix", "num_speculative_tokens": WIDTH},
    "rolltree": {"method": "custom_class", "model": "rolltree.vllm.Proposer", "num_speculative_tokens": WIDTH},
}
TIE = 1e-3
"""Difference of log-probabilities below which two tokens are equally likely; float32 sums differ by less than 1e-4."""
OPTIONS = {"cost": "off"}
"""Every draft is verified: what the tests see does not depend on how fast the machine is."""


VERSION = tuple(int(part) for part in hooks.vllm_version().split(".")[:2])
FIRST_V2 = (0, 32)
RUNNERS = ("V1", "V2", "V2 async")
"""Model runners that an engine may be asked to have; V2 by stand-ins for what it needs of a GPU (see `v2`)."""


@contextmanager
def engine(method: str = "rolltree", *, runner: str = "V1", **settings: Any) -> Iterator[Any]:
    """A `vllm.LLM` in this process; a test of the V2 runner is skipped where vLLM's is too old for ours."""
    is_v2, is_async, is_default = "V2" in runner, "async" in runner, "by default" in runner
    if is_v2 and VERSION < FIRST_V2:
        pytest.skip(f"the V2 runner of vLLM {hooks.vllm_version()} lacks what drafting needs")
    place = v2_on_cpu(async_scheduling=is_async, is_asked_for=not is_default) if is_v2 else nullcontext()
    with place, _engine(method, **settings) as llm:
        assert bool(llm.llm_engine.vllm_config.use_v2_model_runner) == is_v2
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == is_async
        yield llm


@contextmanager
def _engine(method: str, *, model: Path | None = None, **settings: Any) -> Iterator[Any]:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.platforms import current_platform

    from vllm import LLM

    defaults: dict[str, Any] = {
        "model": str(model or model_folder()),
        "speculative_config": METHODS[method],
        "additional_config": {"rolltree": OPTIONS},
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 64,
        "block_size": 32,  # of which the V2 runner wants a multiple on a CPU
        "disable_log_stats": False,
        "distributed_executor_backend": "uni",
        "seed": 0,
    }
    llm = LLM(**(defaults | settings))
    # A later engine of this process would register its kernels again, by a scan of all modules that numba's break.
    current_platform.register_triton_kernel_overrides = lambda: None
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def model_runner(llm: Any) -> Any:
    """The model runner of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def proposer(llm: Any) -> Any:
    """What drafts in an engine in this process: the core of its proposer."""
    runner = model_runner(llm)
    return (getattr(runner, "speculator", None) or runner.drafter).core


def prompts(count: int, seed: int = PROMPT_SEED) -> list[dict[str, list[int]]]:
    """Problems of the demo's task."""
    tokenizer = load_tokenizer()
    return [{"prompt_token_ids": tokenizer(problem.prompt)["input_ids"]} for problem in sample_problems(count, seed)]


def generate(llm: Any, inputs: Sequence[Any], **sampling: Any) -> list[list[int]]:
    """Token ids of every output, samples of a prompt side by side."""
    from vllm import SamplingParams

    settings = {"temperature": 0.0, "max_tokens": 160} | sampling
    outputs = llm.generate(list(inputs), SamplingParams(**settings), use_tqdm=False)
    return [list(sample.token_ids) for output in outputs for sample in output.outputs]


@dataclass(frozen=True)
class Told:
    """A greedy text and, at each token, how far its log-probability was above that of the runner-up."""

    tokens: list[int]
    margins: list[float]


def tell(llm: Any, inputs: Sequence[Any], **sampling: Any) -> list[Told]:
    """Greedy texts of an engine, with their margins."""
    from vllm import SamplingParams

    settings = {"temperature": 0.0, "max_tokens": 160, "logprobs": 2} | sampling
    samples = [output.outputs[0] for output in llm.generate(list(inputs), SamplingParams(**settings), use_tqdm=False)]
    return [Told(list(sample.token_ids), [_margin(place) for place in sample.logprobs]) for sample in samples]


def _margin(place: Any) -> float:
    first, second = sorted((value.logprob for value in place.values()), reverse=True)[:2]
    return float(first - second)


def assert_same(right: Sequence[Told], texts: Sequence[Sequence[int]]) -> None:
    """Texts are equal token for token, but behind a place where two tokens were as good as equally likely.

    There, another shape of the batch may round to the other one: which places these are depends on the processor.
    """
    ties = 0
    for told, text in zip(right, texts, strict=True):
        pairs = zip(told.tokens, text, strict=False)
        place = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if place is None:
            assert len(told.tokens) == len(text)
            continue
        assert told.margins[place] < TIE, (place, told.tokens, list(text))
        ties += 1
    assert ties <= max(1, len(right) // 16)


@contextmanager
def logged() -> Iterator[list[str]]:
    """What rolltree logs in this process meanwhile, whatever level and handlers vLLM has set."""
    log, lines = logging.getLogger("vllm.rolltree"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def accepted(llm: Any) -> int:
    """Draft tokens that vLLM's own counters say were accepted."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return int(values.get("vllm:spec_decode_num_accepted_tokens", 0))


def random_model(folder: Path, *, vocab: int = 64, peak: float = 14.0) -> Path:
    """A tiny untrained Qwen2 whose next-token distributions are neither flat nor certain."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        model.lm_head.weight.mul_(peak)
    model.save_pretrained(folder)
    return folder


def preemptions(llm: Any) -> float:
    """Requests that lost their memory so far."""
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
