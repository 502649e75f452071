"""An engine's process of `bench.vllm_process`, with what the V2 runner needs on a CPU. Imports little."""

from __future__ import annotations

import os
from typing import Any

from rolltree.bench import vllm_worker


def work(pipe: Any, spec: Any, prepare: Any) -> None:
    """V2 with async scheduling, as vLLM runs by itself on a GPU, unless V1 is asked for."""
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "0":
        vllm_worker.work(pipe, spec, prepare)
        return
    from tests.vllm.v2.no_triton import v2_on_cpu

    with v2_on_cpu(async_scheduling=True):
        vllm_worker.work(pipe, spec, prepare)
