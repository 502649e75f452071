"""The `vllm.general_plugins` entry point: runs in the front end, the engine core and every worker, before models load.

Only installs what `compat` lists; without rolltree in an engine's `speculative_config` it changes nothing but a CPU
sampler that is wrong for everybody's speculation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.vllm import compat, metrics
from rolltree.vllm.load import existing
from rolltree.vllm.options import EngineOptions, RequestOptions


def register() -> None:
    """Install everything; a second call changes nothing."""
    compat.hook_runner()
    compat.add_worker_call()
    compat.check_requests(check_request)
    compat.check_engines(prepare_engine)
    compat.refuse_v2_runner(refuse_v2_runner)
    compat.fix_cpu_expand()


def check_request(extra_args: Mapping[str, Any]) -> None:
    """Raise InvalidInputError for a request whose options are not ours."""
    RequestOptions.read(extra_args)


def prepare_engine(vllm_config: Any) -> None:
    """In the front end, before an engine starts: check its options, show its counters."""
    check_engine(vllm_config)
    if EngineOptions.read(vllm_config.additional_config, os.environ).metrics:
        metrics.publish()


def check_engine(vllm_config: Any) -> None:
    """Raise InvalidInputError for engine options that are unknown or do not go together."""
    options = EngineOptions.read(vllm_config.additional_config, os.environ)
    options.frozen_cost()
    if options.load:
        existing(options.load)
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        fix = "Use tensor_parallel_size, or data parallel replicas."
        raise InvalidInputError("pipeline_parallel_size", stages, "1 with rolltree.vllm.Proposer", fix)


def refuse_v2_runner() -> None:
    """Raise the sentence that says what to set."""
    raise InvalidInputError(
        "VLLM_USE_V2_MODEL_RUNNER",
        os.environ.get("VLLM_USE_V2_MODEL_RUNNER"),
        "0 or unset with rolltree.vllm.Proposer",
        "vLLM's V2 model runner takes no custom proposer; unset the variable and vLLM uses the V1 runner.",
    )
