"""Every place where vLLM is reached into, and why. Applied once a process; nothing here drafts.

| What | Why | Without it |
|---|---|---|
| `GPUModelRunner._update_states` tells its proposer | a proposer sees rows, not requests | the start is refused |
| fields of requests and schedules are looked for | they are what drafting reads | the start is refused |
| `WorkerBase.rolltree` | `collective_rpc` calls methods of the worker by name | no control |
| `SamplingParams.verify` reads `extra_args` | a bad option must fail its request, not the engine | only a log line |
| `InputProcessor.__init__` reads our options | a bad option should fail before processes start | fails in the worker |
| `VllmConfig._validate_v2_model_runner` | a V2 runner may lack what drafting needs | vLLM's own message |
| `EngineArgs.create_engine_config` (`compat_args`) | `ROLLTREE_DRAFT` turns drafts on | it does nothing |
| `InputProcessor.process_inputs`, `EngineCore` (`compat_marks`) | conversations, weight updates | none are inferred |
| CPU `expand_kernel` | vllm#55005: writes into a temporary, so samples at T > 0 are wrong | the start is refused |
| CPU `apply_top_k_only` | fails for no rows: a step without drafts, with top-k and no top-p | it ends the engine |

The last two apply only on the CPU platform, the kernel only where a probe shows the fault. GPU code paths stay
untouched. A function that installs something raises `HookMissing`, or whatever the host raises, where this vLLM has no
place for it: `hooks` records that. Imports neither vLLM nor anything heavy of rolltree until one of them is called.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rolltree.vllm import plugin

if TYPE_CHECKING:  # loads numpy, which those who did not ask for rolltree do not need
    pass

PROPOSER = "rolltree.vllm.Proposer"
_MARK = "_rolltree_wrapped"
STATE = {
    "vllm.v1.worker.gpu_input_batch:CachedRequestState": ("prompt_token_ids", "output_token_ids", "sampling_params"),
    "vllm.v1.core.sched.output:NewRequestData": ("req_id", "num_computed_tokens"),
    "vllm.v1.core.sched.output:CachedRequestData": ("req_ids", "num_computed_tokens"),
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "scheduled_spec_decode_tokens",
        "finished_req_ids",
    ),
}
"""What drafting reads of requests and schedules: data classes and their fields."""


class HookMissing(Exception):
    """This vLLM does not have a place that rolltree hooks into, or has another one there."""


def wrap(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]], *parameters: str) -> None:
    """Replace `owner.name`, whose first parameters behind `self` are `parameters`, by `make(original)`, once.

    Raises:
        HookMissing: this vLLM has no such attribute, or one with other parameters.

    """
    original = getattr(owner, name, None)
    if original is None:
        raise HookMissing(f"{owner.__name__} has no {name}")
    taken = tuple(inspect.signature(original).parameters)[1:]
    if taken[: len(parameters)] != parameters:
        raise HookMissing(f"{owner.__name__}.{name} takes ({', '.join(taken)}), not ({', '.join(parameters)})")
    if not hasattr(original, _MARK):
        replacement = functools.wraps(original)(make(original))
        setattr(replacement, _MARK, True)
        setattr(owner, name, replacement)


def hook_runner() -> None:
    """Make model runners show our proposer each step's schedule."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def make(original: Any) -> Callable[..., Any]:
        def _update_states(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            begin_step = getattr(getattr(self, "drafter", None), "rolltree_begin_step", None)
            if begin_step is not None:
                begin_step(self, scheduler_output)
            return original(self, scheduler_output, *args, **kwargs)

        return _update_states

    wrap(GPUModelRunner, "_update_states", make, "scheduler_output")


def _drafting(worker: Any) -> Any:
    """What drafts in a worker: the V1 runner's drafter, or the V2 runner's speculator."""
    runner = getattr(worker, "model_runner", None)
    return getattr(runner, "drafter", None) or getattr(runner, "speculator", None)


def close_with_worker() -> None:
    """Let what drafts keep its rollouts before the worker ends: finished requests are told of only with a next step."""
    from vllm.v1.worker.gpu_worker import Worker  # the CPU's, too, is one

    def make(original: Any) -> Callable[..., Any]:
        def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
            if (close := getattr(_drafting(self), "rolltree_close", None)) is not None:
                close()
            return original(self, *args, **kwargs)

        return shutdown

    wrap(Worker, "shutdown", make)


def check_requests_state() -> None:
    """Look for the fields that drafting reads; raise HookMissing where one is gone."""
    for name, fields in STATE.items():
        module, _, kind = name.partition(":")
        known = __import__(module, fromlist=[kind])
        annotated = getattr(getattr(known, kind, None), "__annotations__", {})
        if gone := [field for field in fields if field not in annotated]:
            raise HookMissing(f"{kind} has no {', '.join(gone)}")


def add_worker_call() -> None:
    """Let `collective_rpc("rolltree", args=(command, ...))` reach the proposer; None on ranks that do not draft."""
    from vllm.v1.worker.worker_base import WorkerBase

    def rolltree(self: Any, command: str, *args: Any, **kwargs: Any) -> Any:
        run = getattr(_drafting(self), "rolltree_command", None)
        return None if run is None else run(command, *args, **kwargs)

    WorkerBase.rolltree = rolltree


def check_requests() -> None:
    """Look at `extra_args` of every request that enters through this process."""
    from vllm.sampling_params import SamplingParams

    def make(original: Any) -> Callable[..., Any]:
        def verify(self: Any, *args: Any, **kwargs: Any) -> Any:
            if extra_args := getattr(self, "extra_args", None):
                plugin.check_request(extra_args)
            try:
                return original(self, *args, **kwargs)
            except Exception as error:
                plugin.explain(error, (*args, *kwargs.values()))
                raise

        return verify

    wrap(SamplingParams, "verify", make)


def refusal(error: Exception) -> Exception:
    """Return the error as one that vLLM takes for the client's fault and its servers answer with status 400.

    vLLM sorts by its own class of errors; any other exception becomes status 500 without a message.
    """
    from vllm import exceptions

    base: Any = getattr(exceptions, "VLLMValidationError", None)
    if base is None:
        return error
    ours: Any = type(error)
    kind = _refusal_kind(ours, base)
    refused = kind.__new__(kind, *error.args)
    refused.__dict__.update(error.__dict__, parameter=getattr(error, "name", None))
    return cast("Exception", refused)


@functools.cache
def _refusal_kind(ours: Any, theirs: Any) -> Any:
    return type("RequestRefused", (ours, theirs), {"__str__": lambda self: str(self.args[0])})


def check_engines() -> None:
    """Look at the options before an engine of this process that is to draft with rolltree starts."""
    from vllm.v1.engine.input_processor import InputProcessor

    def make(original: Any) -> Callable[..., Any]:
        def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            if uses_rolltree(vllm_config):
                plugin.prepare_engine(vllm_config)
            original(self, vllm_config, *args, **kwargs)

        return __init__

    wrap(InputProcessor, "__init__", make, "vllm_config")


def refuse_v2_runner() -> None:
    """Say what to set, before vLLM's own check, when rolltree is to run in the V2 model runner."""
    from vllm.config import VllmConfig

    from rolltree.vllm import compat_v2

    def make(original: Any) -> Callable[..., Any]:
        def _validate_v2_model_runner(self: Any, *args: Any, **kwargs: Any) -> Any:
            if uses_rolltree(self) and not compat_v2.runner_fits():
                plugin.refuse_v2_runner()
            return original(self, *args, **kwargs)

        return _validate_v2_model_runner

    wrap(VllmConfig, "_validate_v2_model_runner", make)


def _installer(module: str, name: str) -> Callable[[], None]:
    def install() -> None:
        getattr(import_module(f"rolltree.vllm.{module}"), name)()

    return install


add_switch = _installer("compat_args", "add_switch")
see_marks = _installer("compat_marks", "see_marks")
see_updates = _installer("compat_marks", "see_updates")
offer_v2_runner = _installer("compat_v2", "offer_v2_runner")
fix_cpu_expand = _installer("compat_cpu", "fix_cpu_expand")
fix_cpu_top_k = _installer("compat_cpu", "fix_cpu_top_k")


def uses_rolltree(vllm_config: Any) -> bool:
    """Return whether this engine's drafts are to come from rolltree."""
    speculative = getattr(vllm_config, "speculative_config", None)
    model = getattr(speculative, "model", None)
    return getattr(speculative, "method", None) == "custom_class" and str(model).startswith("rolltree.vllm")


def is_cpu() -> bool:
    """Return whether vLLM runs on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def longest_draft() -> int:
    """Return how many draft tokens of a request this vLLM verifies in one step at most."""
    from rolltree.vllm.width import MAX_DRAFT

    try:
        from vllm.v1.sample.rejection_sampler import MAX_SPEC_LEN
    except ImportError:
        return MAX_DRAFT
    return min(MAX_DRAFT, int(MAX_SPEC_LEN))


def free_bytes(*, share: float | None) -> int:
    """Return how much memory is free for logits; 0 where that is not known.

    Args:
        share: vLLM's share of all memory: what it leaves is returned, the same number in every process, although other
            work may want it, too. None measures what is free now.

    """
    from vllm.platforms import current_platform

    if current_platform.is_cuda_alike():
        import torch

        free, whole = torch.cuda.mem_get_info()
    elif current_platform.is_cpu():
        free, whole = _free_memory(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return 0
    return int(free if share is None else whole * max(0.0, 1.0 - share))


def _free_memory() -> int:
    try:
        with open("/proc/meminfo") as lines:
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)
    except OSError:  # not Linux
        return 0


def tokenizer(model_config: Any) -> Any:
    """Return the engine's tokenizer, None when it runs without one."""
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)
