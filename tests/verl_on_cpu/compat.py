"""Patches of torch, transformers and vLLM without which verl does not run on a CPU. Each has its reason here.

Applied by `tests.verl_on_cpu.platform` (every verl process) and `tests.verl_on_cpu.worker` (vLLM's workers), never on a
machine that trains on GPUs. `tests/verl/test_compat.py` fails when one of them is no longer needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def apply() -> None:
    """Apply what verl's own processes need; a second call changes nothing."""
    _patch(torch.distributed, "init_process_group", _gloo_once)
    import transformers

    _patch_classmethod(transformers.PreTrainedModel, "from_pretrained", _no_flash_attention)


def apply_to_vllm() -> None:
    """Apply what a vLLM worker needs; a second call changes nothing."""
    import vllm.model_executor.layers.utils as layers
    import vllm.model_executor.layers.vocab_parallel_embedding as embedding

    layers.dispatch_cpu_unquantized_gemm = keep_weight
    if hasattr(embedding, "dispatch_cpu_unquantized_gemm"):
        embedding.dispatch_cpu_unquantized_gemm = keep_weight


def _gloo_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """verl asks for the backend "cpu:gloo,<device>:<backend>"; on a CPU that names the device cpu twice.

    The keyword `device_id` is for accelerators only. Upstream: verl-project/verl#3266 (training on CPUs), open.
    """

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        return original("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    return init_process_group


def _no_flash_attention(original: Callable[..., Any]) -> Callable[..., Any]:
    """verl's `load_valuehead_model` asks for flash_attention_2 whatever the critic's configuration says.

    Upstream: verl-project/verl#5210, open.
    """

    @functools.wraps(original)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("attn_implementation") == "flash_attention_2":
            kwargs["attn_implementation"] = "sdpa"
        return original(cls, *args, **kwargs)

    return from_pretrained


def keep_weight(layer: Any, remove_weight: bool) -> None:
    """Stands in for vLLM's `dispatch_cpu_unquantized_gemm`, which packs `layer.weight` and drops it: no reload then.

    Upstream: no issue known; vLLM's CPU build does not claim weight updates.
    """
    layer.cpu_linear = torch.nn.functional.linear


def _patch(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    if getattr(original, "_rolltree", False):
        return
    wrapped: Any = wrap(original)
    wrapped._rolltree = True
    setattr(owner, name, wrapped)


def _patch_classmethod(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name).__func__
    if getattr(original, "_rolltree", False):
        return
    wrapped: Any = wrap(original)
    wrapped._rolltree = True
    setattr(owner, name, classmethod(wrapped))
