"""Every place where vLLM's V2 model runner is reached into, and why; the sister of `compat`. Nothing here drafts.

| What | Why | Without it |
|---|---|---|
| `VllmConfig._get_v2_model_runner_unsupported_features` | its list has `custom_class` | refused |
| `WorkerBase.__init__` | workers are processes of their own | refused |
| `model_runner.init_speculator` | it builds speculators by name and knows none of others | refused |
| `GPUModelRunner.execute_model` | the schedule is shown, and given back shorter, before it is taken in | refused |
| `VllmConfig.__post_init__` with `NgramGPUTypes` | 0.32 has async scheduling for what it names there | no async |
| the same, for `compat_graphs` | graphs for all drafts | vLLM's own sizes |
| `GPUModelRunner.sample`, `rejection_sampler.rejection_sample` | coupled verification | `coupled` is refused |

Each is checked by signature. Where one is missing, an engine that asks for the V2 runner is refused with what to set;
who does not ask gets the V1 runner. Where all are there, vLLM's own choice holds: V2 where it can.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from rolltree.errors import InvalidInputError
from rolltree.vllm import compat
from rolltree.vllm.compat import HookMissing, uses_rolltree, wrap

if TYPE_CHECKING:
    from rolltree.types import Int32Array

METHOD = "custom_class"
PROPOSE = ("input_batch", "num_sampled", "last_sampled", "dummy_run", "num_speculative_tokens")
"""Parameters of a speculator's `propose` that ours reads."""


def offer_v2_runner() -> None:
    """Let engines that draft with rolltree use the V2 runner when asked to, where this vLLM has what drafting needs."""
    from vllm.config import VllmConfig

    def make(original: Any) -> Callable[..., Any]:
        def _get_v2_model_runner_unsupported_features(self: Any) -> list[str]:
            found = list(original(self))
            if not (uses_rolltree(self) and runner_fits()):
                return found
            return [feature for feature in found if METHOD not in feature]

        return _get_v2_model_runner_unsupported_features

    wrap(VllmConfig, "_get_v2_model_runner_unsupported_features", make)
    _configure()
    _prepare_workers()


def _prepare_workers() -> None:
    """Hook the runner in workers of their own process, too, which get a configuration that was made elsewhere."""
    from vllm.v1.worker.worker_base import WorkerBase

    def make(original: Any) -> Callable[..., Any]:
        def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            if uses_rolltree(vllm_config) and getattr(vllm_config, "use_v2_model_runner", False):
                runner_fits()
            original(self, vllm_config, *args, **kwargs)

        return __init__

    wrap(WorkerBase, "__init__", make, "vllm_config")


def _has_v2_runner(vllm_config: Any) -> bool:
    """Return whether an engine that is being configured drafts with rolltree in the V2 runner."""
    if not uses_rolltree(vllm_config):
        return False
    try:
        return bool(vllm_config.use_v2_model_runner) and runner_fits()
    except Exception:  # its configuration is not complete, or wrong: vLLM says so
        return False


def _configure() -> None:
    """Let engines that draft with rolltree have async scheduling, and graphs for their drafts.

    0.32 knows by name which methods leave drafts to the runner; from 0.33 on only the V1 runner asks. The name is there
    while the configuration of such an engine is made, so that nobody else's changes.
    """
    from vllm.config import VllmConfig
    from vllm.config import vllm as config

    known = getattr(config, "NgramGPUTypes", None)

    def make(original: Any) -> Callable[..., Any]:
        def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if not _has_v2_runner(self):
                original(self, *args, **kwargs)
                return
            if not compat.is_cpu() and _option(self, "graphs") != "keep":
                from rolltree.vllm import compat_graphs

                compat_graphs.widen(self)
            if known is not None:
                config.NgramGPUTypes = Literal[(*get_args(known), METHOD)]
            try:
                original(self, *args, **kwargs)
            finally:
                if known is not None:
                    config.NgramGPUTypes = known

        return __post_init__

    wrap(VllmConfig, "__post_init__", make)


def _option(vllm_config: Any, name: str) -> Any:
    """Return an option where all are right; `checks` says what is wrong with others."""
    from rolltree.vllm import checks

    try:
        return getattr(checks.read_options(vllm_config), name)
    except InvalidInputError:
        return None


@functools.cache
def runner_fits() -> bool:
    """Return whether this vLLM's V2 runner has what the speculator needs, by looking at it."""
    try:
        hook_v2_runner()
    except Exception:  # another vLLM, or none of its packages: `checks` refuses
        return False
    return True


def hook_v2_runner() -> None:
    """Make V2 runners build our speculator and show it each step's schedule.

    Raises:
        HookMissing: this vLLM has another V2 runner, or none.

    """
    from vllm.v1.worker.gpu import model_runner
    from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

    taken = inspect.signature(BaseSpeculator.propose).parameters
    if gone := [name for name in PROPOSE if name not in taken]:
        raise HookMissing(f"BaseSpeculator.propose takes no {', '.join(gone)}")
    _build_ours(model_runner)
    _show_schedules(model_runner.GPUModelRunner)
    _couple(model_runner.GPUModelRunner)


def _build_ours(model_runner: Any) -> None:
    def make(original: Any) -> Callable[..., Any]:
        def init_speculator(vllm_config: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
            if not uses_rolltree(vllm_config):
                return original(vllm_config, device, *args, **kwargs)
            from rolltree.vllm import compat_graphs
            from rolltree.vllm.adaptive import is_adaptive
            from rolltree.vllm.stream_speculator import speculator

            if _option(vllm_config, "graphs") != "keep" and not is_adaptive(vllm_config):
                compat_graphs.want_any_lengths(vllm_config)
            return speculator(vllm_config, device, *args, **kwargs)

        return init_speculator

    wrap(model_runner, "init_speculator", make, "device", "req_states")


def _show_schedules(runner: Any) -> None:
    def make(original: Any) -> Callable[..., Any]:
        def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            begin = getattr(getattr(self, "speculator", None), "rolltree_begin_step", None)
            if begin is not None and not (kwargs.get("dummy_run") or (len(args) > 1 and args[1])):
                scheduler_output = begin(scheduler_output, self)
            return original(self, scheduler_output, *args, **kwargs)

        return execute_model

    wrap(runner, "execute_model", make, "scheduler_output", "intermediate_tensors", "dummy_run")


def _couple(runner: Any) -> None:
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    if not hasattr(rejection_sampler, "rejection_sample"):
        raise HookMissing("rejection_sampler has no rejection_sample")

    def make(original: Any) -> Callable[..., Any]:
        def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not getattr(getattr(self, "speculator", None), "rolltree_coupled", False):
                return original(self, *args, **kwargs)
            from rolltree.vllm import coupled

            with coupled.engaged():
                return original(self, *args, **kwargs)

        return sample

    wrap(runner, "sample", make, "hidden_states", "input_batch")


def propose_parameters() -> tuple[str, ...]:
    """Return the names of what this vLLM's runner hands to a speculator, in order."""
    from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

    return tuple(inspect.signature(BaseSpeculator.propose).parameters)[1:]


def share_of_first() -> Callable[[Int32Array], Int32Array] | None:
    """Return what gives every rank of a forward pass the first one's array; None where there is one rank only.

    The returned function blocks until all have it, and raises where another rank is lost: this must end the engine.
    """
    import torch
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return None

    def share(mine: Int32Array) -> Int32Array:
        array = torch.from_numpy(mine)
        torch.distributed.broadcast(array, src=group.ranks[0], group=group.cpu_group)
        return array.numpy()

    return share
