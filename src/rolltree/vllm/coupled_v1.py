"""Coupled sampling in vLLM's V1 runner: each token is the one that its request's noise picks, drafted or not.

The noise is the V2 runner's, murmur3 of (seed, position, token), so both runners and drafts that follow it agree; see
`coupled`, which is V2's half. Three places draw in V1: rows without drafts, the token behind the drafts (by the same
code), and the rejection sampler.

Invariants: a pick depends on logits, seed and position alone; a draft is accepted iff it is the pick; an error ends the
engine, because to draw in another way in silence is worse. What vLLM does to logits before, and log-probabilities, are
its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rolltree._native import murmur3_argmax
from rolltree.errors import RolltreeError
from rolltree.types import Int64Array

if TYPE_CHECKING:
    from torch import Tensor

GREEDY = 1e-5
"""Temperatures below are greedy (vLLM's `_SAMPLING_EPS`)."""


class Draws:
    """Picks the tokens of one step.

    Args:
        seeds: int64 [B], of each row's request.
        last: int64 [B], position of each row's last token in this step: behind it comes the row's last pick.

    """

    def __init__(self, seeds: Int64Array, last: Int64Array) -> None:
        self._seeds, self._last = seeds, last

    def random(self, logits: Any, mode: str, k: Any, p: Any) -> tuple[Tensor, Any]:
        """Stand in for `TopKTopPSampler.forward`: one position a row.

        Args:
            logits: float32 [B, V].
            mode: vLLM's `logprobs_mode`.
            k: int [B] or None: top-k.
            p: float [B] or None: top-p.

        Returns:
            int64 [B], the picks, and what vLLM wants for log-probabilities in this mode.

        """
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        logits = apply_top_k_top_p(logits, k, p)
        scores = logits.log_softmax(dim=-1) if mode == "processed_logprobs" else logits
        return pick(logits, self._seeds, self._last), scores if mode.startswith("processed") else None

    def verify(
        self, draft_token_ids: Any, num_draft_tokens: list[int], max_spec_len: int, cu_num_draft_tokens: Any,
        draft_probs: Any, target_logits: Any, bonus_token_ids: Any, sampling_metadata: Any, **more: Any,
    ) -> Tensor:  # fmt: skip
        """Stand in for `vllm.v1.sample.rejection_sampler.rejection_sample`.

        Args:
            draft_token_ids: int [N], drafts, row after row.
            num_draft_tokens: drafts of each of the B rows.
            max_spec_len: most of them, K.
            cu_num_draft_tokens: where each row's drafts end.
            draft_probs: None: drafts are certain.
            target_logits: float32 [N, V], processed.
            bonus_token_ids: int [B, 1], the pick behind all drafts of each row.
            sampling_metadata: vLLM's.
            more: what would change the draw is refused.

        Returns:
            int32 [B, K + 1]: the emitted tokens, -1 behind them.

        Raises:
            RolltreeError: drafts that are not certain, or a made-up acceptance rate.

        """
        import torch

        if draft_probs is not None or more.get("synthetic_mode"):
            raise RolltreeError("coupled verification takes certain drafts and their true acceptance only")
        counts = np.asarray(num_draft_tokens, np.int64)
        owner = np.repeat(np.arange(len(counts)), counts)
        step = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        picks = self._picks(target_logits, owner, counts[owner] - step, sampling_metadata)
        rows, places = (torch.from_numpy(array).to(picks.device) for array in (owner, step))
        agree = picks.new_zeros(len(counts), max_spec_len + 1)
        agree[rows, places] = (picks == draft_token_ids).to(picks.dtype)
        tokens = torch.full_like(agree, -1)
        tokens[rows, places] = picks
        ends = torch.from_numpy(counts).to(picks.device)[:, None]
        tokens.scatter_(1, ends, bonus_token_ids.to(picks.dtype))
        emitted = torch.ones_like(agree)
        emitted[:, 1:] = agree[:, :-1].cumprod(dim=1)
        return torch.where(emitted > 0, tokens, -1).to(torch.int32)

    def _picks(self, logits: Any, owner: Int64Array, before: Int64Array, metadata: Any) -> Tensor:
        """Return int64 [N]; `before` [N] is how far each position lies before its row's last one."""
        import torch

        if metadata.all_greedy:
            return logits.argmax(dim=-1)  # type: ignore[no-any-return]
        picks = pick(logits, self._seeds[owner], self._last[owner] - before)
        if metadata.all_random:
            return picks
        is_greedy = (metadata.temperature < GREEDY)[torch.from_numpy(owner).to(picks.device)]
        return torch.where(is_greedy, logits.argmax(dim=-1), picks)


def pick(logits: Any, seeds: Int64Array, positions: Int64Array) -> Tensor:
    """Return int64 [N]: argmax of logits float32 [N, V] and the noise of (seed, position, token).

    On a CPU by the core; elsewhere by the kernel of vLLM's own V2 sampler.
    """
    import torch

    if logits.device.type != "cpu":
        return pick_on_device(logits, seeds, positions)
    picks = np.empty(len(seeds), np.int64)
    murmur3_argmax(logits.float().contiguous().numpy(), seeds, positions, picks)
    return torch.from_numpy(picks)


def pick_on_device(logits: Any, seeds: Int64Array, positions: Int64Array) -> Tensor:
    """Do what `pick` does, by vLLM's kernel."""
    import torch
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    more = {"is_drafting": False} if "is_drafting" in inspect.signature(gumbel_sample).parameters else {}
    rows = torch.arange(len(seeds), dtype=torch.int32, device=logits.device)
    seed, pos = (torch.from_numpy(array).to(logits.device) for array in (seeds, positions))
    warm = torch.ones(len(seeds), dtype=torch.float32, device=logits.device)
    return gumbel_sample(logits, rows, warm, seed, pos, apply_temperature=False, **more)  # type: ignore[no-any-return]


@contextmanager
def engaged(sampler: Any, draws: Draws) -> Iterator[None]:
    """Let this runner's sampler draw so for the duration of the block; other engines of the process keep vLLM's own."""
    from vllm.v1.sample import rejection_sampler

    undrafted, stock = sampler.topk_topp_sampler, rejection_sampler.rejection_sample
    mode, forward = undrafted.logprobs_mode, undrafted.forward
    undrafted.forward = lambda logits, generators, k, p: draws.random(logits, mode, k, p)
    rejection_sampler.rejection_sample = draws.verify
    try:
        yield
    finally:
        undrafted.forward, rejection_sampler.rejection_sample = forward, stock
