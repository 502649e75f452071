"""One vLLM engine in a process of its own, for `rolltree bench engine --engine vllm`: generates epochs when told to.

Reads requests from and answers through a pipe, so that engines of several drafters can take turns within one run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rolltree.bench.trained import Remembered

NGRAM = {"num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What a worker builds."""

    drafter: str
    """none, ngram, suffix or rolltree."""
    model: str
    """Folder of the model."""
    slots: int
    """Requests in the batch at most."""
    max_length: int
    """Tokens of prompt and output."""
    max_draft: int
    """Draft tokens of a request and step at most."""
    threads: int
    """Threads of torch."""
    options: dict[str, object]
    """Of rolltree, for `additional_config`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What a worker generated."""

    seconds: float
    tokens: int
    drafted: int
    accepted: int
    draft_seconds: float
    """Seconds in rolltree's proposer; 0 for the others."""


def work(pipe: Connection, spec: EngineSpec, remembered: list[Remembered]) -> None:
    """Build the engine, answer "ready", then answer each (prompts, sampling settings, version) until None comes."""
    try:
        llm = _engine(spec)
        _warm(llm, spec.drafter, remembered)
        pipe.send("ready")
        while (order := pipe.recv()) is not None:
            pipe.send(_generate(llm, spec, *order))
    except Exception as error:  # the parent raises it
        pipe.send(f"{type(error).__name__}: {error}")


def speculation(spec: EngineSpec) -> dict[str, object] | None:
    """Return vLLM's speculative_config."""
    match spec.drafter:
        case "ngram":
            return {"method": "ngram", **NGRAM}
        case "suffix":
            return {"method": "suffix", "num_speculative_tokens": spec.max_draft}
        case "rolltree":
            width = spec.max_draft
            return {"method": "custom_class", "model": "rolltree.vllm.Proposer", "num_speculative_tokens": width}
    return None


def _engine(spec: EngineSpec) -> Any:
    import torch

    from vllm import LLM

    llm = LLM(
        spec.model,
        speculative_config=speculation(spec),
        additional_config={"rolltree": spec.options},
        dtype="float32",
        enforce_eager=True,
        max_model_len=spec.max_length,
        max_num_seqs=spec.slots,
        disable_log_stats=False,
        distributed_executor_backend="uni",
        seed=0,
    )
    torch.set_num_threads(spec.threads)
    return llm


def _proposer(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.drafter


def _warm(llm: Any, drafter: str, remembered: list[Remembered]) -> None:
    """Give a drafter that remembers what training generated."""
    if drafter == "rolltree":
        cache = _proposer(llm).core.drafter.cache
        for earlier in remembered:
            cache.set_version(earlier.version)
            cache.add(earlier.prompt, earlier.rollout)
    elif drafter == "suffix":
        cache = _proposer(llm).suffix_cache
        for number, earlier in enumerate(remembered):
            cache.start_request(f"earlier-{number}", earlier.prompt)
            cache.add_active_response(f"earlier-{number}", earlier.rollout)
            cache.stop_request(f"earlier-{number}")


def _generate(
    llm: Any, spec: EngineSpec, prompts: list[list[int]], sampling: dict[str, Any], version: int | None
) -> Epoch:
    from vllm import SamplingParams

    if spec.drafter == "rolltree" and version is not None:
        _proposer(llm).core.drafter.cache.set_version(version)
    before = _sums(llm, spec)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    begin = time.perf_counter()
    outputs = llm.generate(inputs, SamplingParams(**sampling), use_tqdm=False)
    seconds = time.perf_counter() - begin
    drafted, accepted, draft_seconds = (_sums(llm, spec) - before).tolist()
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return Epoch(
        seconds=seconds, tokens=tokens, drafted=int(drafted), accepted=int(accepted), draft_seconds=draft_seconds
    )


def _sums(llm: Any, spec: EngineSpec) -> Any:
    """Draft tokens that were verified and accepted by vLLM's own counters, seconds by ours."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    counted = [values.get(f"vllm:spec_decode_num_{name}_tokens", 0.0) for name in ("draft", "accepted")]
    return np.array([*counted, _proposer(llm).core.draft_seconds if spec.drafter == "rolltree" else 0.0])
