"""Where a benchmark's model runs: devices and number types by name, checked before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rolltree.bench.engine import Workload
from rolltree.errors import InvalidInputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device(device: str, dtype: str = "float32") -> None:
    """Raise InvalidInputError for a device that torch does not see, or a type that is none of `DTYPES`."""
    if dtype not in DTYPES:
        raise InvalidInputError("--dtype", dtype, f"one of {', '.join(DTYPES)}")
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InvalidInputError("--device", device, "cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("--device", device, "a device that torch sees", "Use --device cpu, or a CUDA build.")


def moved(workload: Workload, device: str, dtype: str) -> Workload:
    """The same workload with its model on `device`; InvalidInputError for what is not there."""
    check_device(device, dtype)
    model: Any = workload.model
    return replace(workload, model=model.to(device, DTYPES[dtype]))
