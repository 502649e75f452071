"""Lets vLLM's V2 model runner start on a CPU without a `triton` package: a stand-in for tests.

vLLM has a placeholder for triton, which lacks one function, and looks at a flag before it takes the V2 runner. Only the
kernels of `kernels` can run; any other one fails with "not subscriptable" at its first launch. The CPU platform turns
async scheduling off ("not required on CPU"): `allow_async` leaves it as it was asked for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def v2_on_cpu(*, async_scheduling: bool, is_asked_for: bool = True) -> Iterator[None]:
    """Everything that an engine needs in its place for the duration of the block; V2 by its variable or by default."""
    from vllm.config import vllm as config
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.sample.ops import topk_topp_sampler

    from tests.vllm.v2 import kernels
    from vllm import triton_utils

    with pytest.MonkeyPatch.context() as patch:
        if is_asked_for:
            patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
        else:
            patch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
        if not triton_utils.HAS_TRITON:
            patch.setattr(triton_utils.triton, "next_power_of_2", _next_power_of_2, raising=False)
            patch.setattr(config, "HAS_TRITON", True)
        patch.setattr(topk_topp_sampler, "HAS_TRITON", False)  # torch's form of it
        if async_scheduling:
            patch.setattr(CpuPlatform, "check_and_update_config", _allow_async(CpuPlatform.check_and_update_config))
        with kernels.in_place(patch):
            yield


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 0 else 1


def _allow_async(original: Any) -> Any:
    @functools.wraps(original.__func__)
    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        original.__func__(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    return classmethod(check_and_update_config)
