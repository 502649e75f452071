"""What the GPU benchmarks need, checked before anything is measured: weights, packages, one device."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from examples.smollm2.rollouts import gguf_folder, missing
from rolltree.errors import InvalidInputError, MissingDependencyError

REAL = ("demo", "smollm2-135m")


def check_model(name: str) -> None:
    """Raise MissingDependencyError where a real model's weights or problems are not installed."""
    if name == "smollm2-135m":
        gguf_folder()
        if find_spec("reasoning_gym") is None:
            raise missing("reasoning-gym")


def vllm_installed() -> bool:
    """Whether vLLM can be found."""
    return find_spec("vllm") is not None


def check_vllm_installed() -> None:
    """Raise MissingDependencyError where vLLM cannot be found."""
    if not vllm_installed():
        fix = "pip install 'rolltree[vllm]', or scripts/bundle_vllm.sh for a host without a network"
        raise MissingDependencyError(f"--part vllm needs vLLM: {fix}")


def check_trainer_installed() -> None:
    """Raise MissingDependencyError where TRL cannot be imported: better now than after an hour of measuring."""
    try:
        from trl import GRPOTrainer  # noqa: F401
    except (ImportError, RuntimeError) as error:  # transformers wraps a failed import in a RuntimeError
        fix = 'pip install "rolltree[trl]", or TRL=1 scripts/gpu_bundle.sh for a host without a network'
        others = "or name the other parts by --part"
        raise MissingDependencyError(
            f"--part grpo needs trl, datasets and accelerate ({error}): {fix}; {others}"
        ) from error


def check_one_device(device: str) -> None:
    """Raise InvalidInputError unless `device` is all that the trainer sees: it would spread over the others."""
    if device.startswith("cuda") and torch.cuda.device_count() > 1:
        raise InvalidInputError(
            "--device", device, "the only visible device for --part grpo", "Set CUDA_VISIBLE_DEVICES to its number."
        )
