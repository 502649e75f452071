"""Sampling settings of a batch as tensors, one row a distribution to sample from.

Built when the set of running requests changes, not in every step; `rows` spreads them over the nodes of a
step. Knows no logits. A setting that no row uses is None, so that its work is skipped without looking at
the device. Settings that all requests share have one row and broadcast: `rows` then costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rolltree.sampling.params import SamplingParams
from rolltree.types import Int64Array

NO_TOP_K = 1 << 31  # above any vocabulary size
NO_TAIL = -1.0  # below any cumulative probability

_COLUMNS = np.dtype([("greedy", "?"), ("temperature", "f4"), ("top_k", "i8"), ("tail", "f4"), ("log_min_p", "f4")])


def _column(params: SamplingParams) -> tuple[bool, float, int, float, float]:
    """The settings as the filters use them; a greedy row filters nothing and keeps its logits as they are."""
    if params.greedy:
        return (True, 1.0, NO_TOP_K, NO_TAIL, -np.inf)
    tail = 1 - params.top_p if params.top_p < 1 else NO_TAIL
    log_min_p = float(np.log(params.min_p)) if params.min_p > 0 else -np.inf
    return (False, params.temperature, params.top_k or NO_TOP_K, tail, log_min_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParams:
    """Sampling settings of N rows; tensors are [N, 1], or [1, 1] where all rows share them."""

    greedy: Tensor | None
    """bool: the row takes the argmax of its logits. None: no row does."""
    all_greedy: bool
    """Every row is greedy, so no noise is needed."""
    temperature: Tensor | None
    """float32, 1 for greedy rows. None: 1 everywhere."""
    cut_rows: Tensor | None
    """int64 [M]: the rows that use top-k or top-p, where fewer than all; top_k and tail have M rows."""
    top_k: Tensor | None
    """int64 [M, 1], NO_TOP_K where off. None: no row uses top-k."""
    max_top_k: int
    """Largest top_k of the rows, NO_TOP_K where one is off."""
    tail: Tensor | None
    """float32 [M, 1]: 1 - top_p, the mass to cut, NO_TAIL where off. None: no row uses top-p."""
    log_min_p: Tensor | None
    """float32: log(min_p), -inf where off. None: no row uses min-p."""
    host: npt.NDArray[np.void]
    """The same settings on the host, one record a row, or a single one."""
    device: torch.device
    """Where the tensors live."""

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str = "cpu") -> RowParams:
        """Settings of the requests `params`, one row each, or one for all where no policy differs."""
        shared = len({p.policy for p in params}) == 1
        host = np.array([_column(p) for p in (params[:1] if shared else params)], _COLUMNS)
        return _build(host, torch.device(device))

    def rows(self, index: Int64Array) -> RowParams:
        """Settings of the rows `index` [N] of this batch (host array): one for each node of a step."""
        return self if len(self.host) == 1 else _build(self.host[index], self.device)


def _build(host: npt.NDArray[np.void], device: torch.device) -> RowParams:
    def tensor(column: npt.NDArray[np.generic], used: npt.NDArray[np.bool_]) -> Tensor | None:
        if not used.any():
            return None
        return torch.from_numpy(np.array(column, order="C")).unsqueeze(-1).to(device, non_blocking=True)

    cut = (host["top_k"] < NO_TOP_K) | (host["tail"] > NO_TAIL)
    part = host[cut]
    cut_rows = None if cut.all() or not cut.any() else torch.from_numpy(np.flatnonzero(cut)).to(device)
    return RowParams(
        greedy=tensor(host["greedy"], host["greedy"]),
        all_greedy=bool(host["greedy"].all()),
        temperature=tensor(host["temperature"], host["temperature"] != 1),
        cut_rows=cut_rows,
        top_k=tensor(part["top_k"], part["top_k"] < NO_TOP_K),
        max_top_k=int(part["top_k"].max(initial=0)),
        tail=tensor(part["tail"], part["tail"] > NO_TAIL),
        log_min_p=tensor(host["log_min_p"], host["log_min_p"] > -np.inf),
        host=host,
        device=device,
    )
