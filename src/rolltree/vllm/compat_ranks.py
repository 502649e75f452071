"""Where vLLM is asked who the ranks of an engine are, and which of them schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rolltree.serving.agreement import Agreement
    from rolltree.types import Int64Array


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

    from rolltree.serving.agreement import Agreement

    group = get_tp_group()

    def gather(mine: Int64Array) -> Int64Array:
        everyone = [torch.empty(len(mine), dtype=torch.int64) for _ in group.ranks]
        torch.distributed.all_gather(everyone, torch.from_numpy(mine), group=group.cpu_group)
        return torch.stack(everyone).numpy()

    return Agreement(gather, leads=group.rank_in_group == 0)
