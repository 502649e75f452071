"""Every place where vLLM is reached into, and why. Applied once a process; nothing here drafts.

| What | Why | Without it |
|---|---|---|
| `GPUModelRunner._update_states` tells its proposer | a proposer sees rows, not requests | the start is refused |
| fields of requests and schedules are looked for | they are what drafting reads | the start is refused |
| `WorkerBase.rolltree` | `collective_rpc` calls methods of the worker by name | no control |
| `SamplingParams.verify` reads `extra_args` | a bad option must fail its request, not the engine | only a log line |
| `InputProcessor.__init__` reads our options | a bad option should fail before processes start | fails in the worker |
| `VllmConfig._validate_v2_model_runner` | a V2 runner may lack what drafting needs | vLLM's own message |
| CPU `expand_kernel` | vllm#55005: writes into a temporary, so samples at T > 0 are wrong | the start is refused |
| CPU `apply_sampling_constraints` | top-k of a step without drafts raises | the engine may die there |

The last two apply only on the CPU platform, one only where a probe shows the fault. GPU code paths stay untouched. A
function that installs something raises `HookMissing`, or whatever the host raises, where this vLLM has no place for it:
`hooks` records that. Imports neither vLLM nor anything of rolltree that is heavy until one of them is called.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from rolltree.vllm import plugin

if TYPE_CHECKING:  # loads numpy, which those who did not ask for rolltree do not need
    from rolltree.serving.agreement import Agreement
    from rolltree.types import Int64Array

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
        runner = getattr(self, "model_runner", None)
        drafting = getattr(runner, "drafter", None) or getattr(runner, "speculator", None)  # V1, V2
        run = getattr(drafting, "rolltree_command", None)
        return None if run is None else run(command, *args, **kwargs)

    WorkerBase.rolltree = rolltree


def check_requests() -> None:
    """Look at `extra_args` of every request that enters through this process."""
    from vllm.sampling_params import SamplingParams

    def make(original: Any) -> Callable[..., Any]:
        def verify(self: Any, *args: Any, **kwargs: Any) -> Any:
            if extra_args := getattr(self, "extra_args", None):
                plugin.check_request(extra_args)
            return original(self, *args, **kwargs)

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


def offer_v2_runner() -> None:
    """Let engines that draft with rolltree use the V2 runner, where it has what drafting needs."""
    from rolltree.vllm import compat_v2

    compat_v2.offer_v2_runner()


def fix_cpu_expand() -> None:
    """Put a right `expand_kernel` in the place of the CPU's wrong one, where that is needed."""
    from rolltree.vllm import compat_cpu

    compat_cpu.fix_cpu_expand()


def fix_cpu_empty() -> None:
    """Let a step that has no drafts pass through the CPU's rejection sampler."""
    from rolltree.vllm import compat_cpu

    compat_cpu.fix_cpu_empty()


def uses_rolltree(vllm_config: Any) -> bool:
    """Return whether this engine's drafts are to come from rolltree."""
    speculative = getattr(vllm_config, "speculative_config", None)
    model = getattr(speculative, "model", None)
    return getattr(speculative, "method", None) == "custom_class" and str(model).startswith("rolltree.vllm")


def is_output_rank() -> bool:
    """Return whether a scheduler that is the only one takes its drafts from this worker."""
    from vllm.distributed.parallel_state import get_tp_group

    return bool(get_tp_group().rank_in_group == 0)


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


def schedules_alone(vllm_config: Any) -> bool:
    """Return whether each rank has a scheduler of its own, so that it verifies what its own worker drafted.

    True for `external_launcher` and whatever else runs one worker in the process that schedules. The other executors
    (`mp`, `ray`) have one scheduler, which takes the drafts of the output rank.
    """
    if vllm_config.parallel_config.tensor_parallel_size == 1:
        return False
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return issubclass(Executor.get_class(vllm_config), UniProcExecutor)


def agreement() -> Agreement:
    """Return agreement of this rank with those that share its forward passes, over vLLM's own group for the CPU."""
    import torch
    from vllm.distributed.parallel_state import get_tp_group

    from rolltree.serving.agreement import Agreement

    group = get_tp_group()

    def gather(mine: Int64Array) -> Int64Array:
        everyone = [torch.empty(len(mine), dtype=torch.int64) for _ in group.ranks]
        torch.distributed.all_gather(everyone, torch.from_numpy(mine), group=group.cpu_group)
        return torch.stack(everyone).numpy()

    return Agreement(gather, leads=group.rank_in_group == 0)


def tokenizer(model_config: Any) -> Any:
    """Return the engine's tokenizer, None when it runs without one."""
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)
