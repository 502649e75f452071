"""Which steps vLLM's V2 runner has full CUDA graphs for: read from its configuration and its graph manager, and set.

| What | Why | Without it |
|---|---|---|
| `CompilationConfig.cudagraph_capture_sizes`, `max_cudagraph_capture_size` | vLLM's own end at 512 tokens | left |
| `CompilationConfig.resolve_cudagraph_mode_and_sizes` | knows what attention can; FULL takes any lengths | left |
| `num_speculative_tokens_per_batch_size`, `build_dynamic_sd_schedule_lookup` | captured lengths beside K | K alone |
| `GPUModelRunner.cudagraph_manager`: `graphs`, `dispatch` | whether a step replays a full graph | ragged drafts |

Read in vLLM 0.32 (`v1/worker/gpu/cudagraph_utils.py`): a mode with a decode routine of its own (FULL_AND_PIECEWISE,
FULL_DECODE_ONLY) captures uniform steps of K + 1 tokens a request, or of each K of the schedule by batch size, + 1; a
step without drafts is among them only where that schedule names 0. FULL captures steps of any lengths, with prompts to
read, too, and is for attention that takes any batch (FlashAttention 3, Triton's). On an H200 steps that launch their
kernels one by one took two to four times as long (docs/LOG.md).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from rolltree.vllm.compat import wrap
from rolltree.vllm.draft_lengths import Graphs
from rolltree.vllm.graph_sizes import capture_sizes

_ANY_LENGTHS = "_rolltree_any_lengths"
DISPATCH = ("num_reqs", "num_tokens", "uniform_token_count", "num_active_loras", "max_query_len")
"""Parameters of the manager's `dispatch` that are given."""


@contextmanager
def _left_as_they_are() -> Iterator[None]:
    """Say that the graphs stay vLLM's own where this vLLM has no such places: drafting goes on, slower."""
    try:
        yield
    except Exception as error:
        log = logging.getLogger("vllm.rolltree")
        log.warning("rolltree: CUDA graphs are left as they are, this vLLM has them in another way (%s).", error)


@_left_as_they_are()
def widen(vllm_config: Any) -> None:
    """Let an engine that is being configured capture graphs for all drafts of all requests, unless it has sizes."""
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_capture_sizes is None and compilation.max_cudagraph_capture_size is None:
        scheduler = vllm_config.scheduler_config
        places = vllm_config.speculative_config.num_speculative_tokens
        compilation.cudagraph_capture_sizes = capture_sizes(
            scheduler.max_num_seqs, places, scheduler.max_num_batched_tokens
        )


@_left_as_they_are()
def want_any_lengths(vllm_config: Any) -> None:
    """Let the worker's graphs be of steps of any lengths, where its attention can; before they are resolved."""
    from vllm.config import CompilationConfig
    from vllm.config.compilation import CUDAGraphMode
    from vllm.v1.attention.backend import AttentionCGSupport

    if getattr(getattr(vllm_config, "attention_config", None), "hisparse_config", None) is not None:
        return  # it has full graphs for decode steps alone

    def make(original: Any) -> Callable[..., Any]:
        def resolve_cudagraph_mode_and_sizes(self: Any, min_cg_support: Any, *args: Any, **kwargs: Any) -> Any:
            usual = self.cudagraph_mode == CUDAGraphMode.FULL_AND_PIECEWISE
            if usual and getattr(self, _ANY_LENGTHS, False) and min_cg_support == AttentionCGSupport.ALWAYS:
                self.cudagraph_mode = CUDAGraphMode.FULL
            return original(self, min_cg_support, *args, **kwargs)

        return resolve_cudagraph_mode_and_sizes

    wrap(CompilationConfig, "resolve_cudagraph_mode_and_sizes", make, "min_cg_support")
    object.__setattr__(vllm_config.compilation_config, _ANY_LENGTHS, True)


def draft_sizes(vllm_config: Any) -> tuple[int, ...]:
    """Return the draft lengths that full graphs of decode steps are captured for, where any are, in rising order."""
    speculative = vllm_config.speculative_config
    width, schedule = int(speculative.num_speculative_tokens), None
    schedule = getattr(speculative, "num_speculative_tokens_per_batch_size", None)
    if not schedule:
        return (width,)
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    rows = vllm_config.scheduler_config.max_num_seqs
    dense = build_dynamic_sd_schedule_lookup(schedule, vllm_max_batch_size=rows, vllm_num_speculative_tokens=width)
    return tuple(sorted(set(dense[1:])))


def graphs_of(runner: Any) -> Graphs | None:
    """Return what full graphs a runner has captured; None where there are none (a CPU, eager, PIECEWISE) to ask for."""
    manager = getattr(runner, "cudagraph_manager", None)
    captured = getattr(manager, "graphs", None)
    if not captured:
        return None
    kinds: tuple[Any, Any] = type(manager), type(next(iter(captured)))
    if not _can_be_asked(*kinds):
        return None
    from vllm.config.compilation import CUDAGraphMode

    def replays(rows: int, drafted: int, longest: int) -> bool:
        query = 1 + longest
        uniform = query if drafted == rows * longest else None
        found = manager.dispatch(**dict(zip(DISPATCH, (rows, rows + drafted, uniform, 0, query), strict=True)))  # type: ignore[union-attr]
        return bool(found.cg_mode == CUDAGraphMode.FULL)

    return Graphs(replays, any_lengths=next(iter(captured)).uniform_token_count is None)


@cache
def _can_be_asked(manager: type, graph: type) -> bool:
    taken = inspect.signature(getattr(manager, "dispatch", _can_be_asked)).parameters
    return all(name in taken for name in DISPATCH) and "uniform_token_count" in getattr(graph, "__annotations__", ())
