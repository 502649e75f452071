"""Models by name for the GPU benchmarks: the shipped one, a real small one, and dummy weights of well-known shapes.

Dummy weights make real step costs and meaningless text: use them with forced acceptance (`forced`) alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu.needs import REAL, check_model
from rolltree.bench.device import DTYPES, check_device
from rolltree.errors import InvalidInputError

DUMMY: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5,
        "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "dummy-0.5b": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "dummy-1.5b": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "dummy-7b": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Shapes of Qwen2.5 0.5B, 1.5B and 7B; "tiny" is for tests: a little larger than the demo's model (`enlarged`)."""
MODELS = (*REAL, *DUMMY)
CONTEXT = 32768


def load(name: str, device: str, dtype: str) -> PreTrainedModel:
    """The model `name` on `device`, in evaluation mode.

    Raises:
        InvalidInputError: an unknown model or type, or a device that is not there.
        MissingDependencyError: the package with the weights is not installed.

    """
    if name not in MODELS:
        raise InvalidInputError("--model", name, f"one of {', '.join(MODELS)}")
    check_model(name)
    check_device(device, dtype)
    model = _dummy(DUMMY[name], device, DTYPES[dtype]) if name in DUMMY else _real(name)
    return model.to(device, DTYPES[dtype]).train(False)  # type: ignore[arg-type, no-any-return, unused-ignore]


def _real(name: str) -> PreTrainedModel:
    if name == "demo":
        from rolltree.demo.assets import load_model

        return load_model()
    from examples.smollm2.rollouts import load as load_smollm2

    return load_smollm2()[0]


def _dummy(shape: dict[str, Any], device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, made on the device: 7B would take minutes on a CPU."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(Qwen2Config(**shape, max_position_embeddings=CONTEXT, use_cache=False))
    finally:
        torch.set_default_dtype(before)


def synchronise(device: torch.device) -> None:
    """Wait for the device; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_device(device: torch.device) -> str:
    """What a result was measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
