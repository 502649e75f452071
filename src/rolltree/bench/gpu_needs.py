"""What the GPU benchmarks need, checked before anything is measured: names, devices, weights, packages."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from rolltree.demo.smollm2 import gguf_folder, missing
from rolltree.errors import InvalidInputError, MissingDependencyError

REAL = ("demo", "smollm2-135m")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_model(name: str) -> None:
    """Raise MissingDependencyError where a real model's weights or problems are not installed."""
    if name == "smollm2-135m":
        gguf_folder()
        if find_spec("reasoning_gym") is None:
            raise missing("reasoning-gym")


def check_device(device: str) -> None:
    """Raise InvalidInputError for a device that torch does not see."""
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InvalidInputError("--device", device, "cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("--device", device, "a device that torch sees", "Use --device cpu, or a CUDA build.")


def check_trainer_installed() -> None:
    """Raise MissingDependencyError where TRL cannot be imported: better now than after an hour of measuring."""
    try:
        from trl import GRPOTrainer  # noqa: F401
    except (ImportError, RuntimeError) as error:  # transformers wraps a failed import in a RuntimeError
        fix = 'pip install "rolltree[trl]" accelerate, or TRL=1 scripts/gpu_bundle.sh for a host without a network'
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
