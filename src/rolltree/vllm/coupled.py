"""Coupled verification in vLLM's V2 runner: a draft is accepted iff it is the token that the request's noise picks.

Every position is drawn as V2 draws it without speculation, by Gumbel noise of (seed, position, token), and the token
drawn is emitted; a draft only decides whether the next position counts as well. So a seeded request has the same text
with drafts, without, with any cache and after preemption (up to the numerics of another batch shape), and for certain
drafts the chance of acceptance is the target's probability, as by rejection (drafter-invariant speculative decoding,
arXiv 2408.07978). Tensor operations of fixed size only: on a GPU nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rolltree.errors import RolltreeError

if TYPE_CHECKING:
    from torch import Tensor


def rejection_sample(
    target_logits: Any, draft_logits: Any, draft_sampled: Any, cu_num_logits: Any, pos: Any, idx_mapping: Any,
    expanded_idx_mapping: Any, expanded_local_pos: Any, temperature: Any, seed: Any, num_speculative_steps: int,
    synthetic_conditional_rates: Any = None, use_fp64: bool = False, use_block_verification: bool = False, **more: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Stand in for `vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils.rejection_sample`.

    Args:
        target_logits: float [N, V], processed logits of all verified positions, row after row.
        draft_logits: None: drafts are certain.
        draft_sampled: int [N], for each position the token that stands there: place 0 of a row is its last sampled one.
        cu_num_logits: int [B + 1], where each row's positions begin.
        pos: int [N], absolute positions.
        idx_mapping: int [B], slot of each row.
        expanded_idx_mapping: int [N], slot of each position.
        expanded_local_pos: int [N], place of each position in its row.
        temperature: float [slots].
        seed: int64 [slots].
        num_speculative_steps: K.
        synthetic_conditional_rates: None.
        use_fp64: of the noise.
        use_block_verification: ignored: every position is verified by itself.
        more: of later versions; what would change the draw is refused.

    Returns:
        int64 [B, K + 1] tokens, of which the first `count` are emitted, and int32 [B], that count.

    Raises:
        RolltreeError: watermarks, or other ways to verify, which a coupled draw would not heed.

    """
    import torch
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    if draft_logits is not None or synthetic_conditional_rates is not None:
        raise RolltreeError("coupled verification takes certain drafts only: another speculator drafts here")
    if more.get("contexts") is not None or more.get("fly_window_size"):
        raise RolltreeError("coupled verification goes with neither watermarks nor fly: leave `coupled` off")
    picks = gumbel_sample(
        target_logits, expanded_idx_mapping, temperature, seed, pos, apply_temperature=False, is_drafting=False,
        use_fp64=use_fp64,
    )  # fmt: skip
    rows, positions = cu_num_logits.shape[0] - 1, picks.shape[0]
    place, ends = torch.arange(positions, device=picks.device), cu_num_logits[1:].to(torch.int64)
    owner = torch.searchsorted(ends, place, right=True)
    drafted = torch.roll(draft_sampled, -1).to(
        picks.dtype
    )  # what stands behind each position: its draft, if it has one
    accepted = (drafted == picks) & (place + 1 < ends[owner])
    grid = picks.new_zeros(rows, num_speculative_steps + 1)
    sampled, step = grid.clone(), expanded_local_pos.to(torch.int64)
    grid[owner, step] = accepted.to(grid.dtype)
    sampled[owner, step] = picks
    return sampled, (grid.cumprod(dim=1).sum(dim=1) + 1).to(torch.int32)


@contextmanager
def engaged() -> Iterator[None]:
    """It takes the place of vLLM's for the duration of the block: another engine of this process keeps vLLM's own."""
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    stock = rejection_sampler.rejection_sample
    rejection_sampler.rejection_sample = rejection_sample
    try:
        yield
    finally:
        rejection_sampler.rejection_sample = stock
