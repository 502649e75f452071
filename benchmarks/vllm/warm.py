"""Gives the engines of `make vllm-bench` what a training generated before; runs in their process."""

from __future__ import annotations

from typing import Any

from rolltree.bench.trained import Remembered


def warm(remembered: list[Remembered], llm: Any, drafter: str) -> None:
    """Give a drafter that remembers what is remembered, oldest first."""
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


def _proposer(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.drafter
