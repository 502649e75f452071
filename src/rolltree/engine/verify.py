"""From a step's logits to what it emits: sampling, acceptance, near ties. The rules live in
`rolltree.sampling`.

Coupled rule: one device-to-host copy of (token, log-probability, margin) per node, the rest is host work. A
token whose margin is below the tie margin could come out differently in another batch shape; it is decided by
a plain forward of its own prefix instead, so that rollouts do not depend on the batch. Only nodes on an
accepted path are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rolltree.engine.config import EngineConfig
from rolltree.engine.stats import EngineStats
from rolltree.engine.step import Outcome, VerifyStep
from rolltree.sampling import (
    RowParams,
    Samples,
    at,
    log_probs,
    policy_log_probs,
    row_keys,
    sample,
    sample_compiled,
    verify_coupled,
    verify_one_hot,
)
from rolltree.types import Int64Array

FLOAT32_TIE_MARGIN = 1e-4
"""Ten times the largest difference seen between batch shapes."""
UInt64Array = npt.NDArray[np.uint64]
Decide = Callable[[int, Int64Array], Tensor]
"""(row, draft tokens after the committed ones) -> canonical logits [1, V]."""


def tie_margin(config: EngineConfig, dtype: torch.dtype) -> float:
    """The configured margin, or that of the model's arithmetic."""
    if config.tie_margin is not None:
        return config.tie_margin
    return FLOAT32_TIE_MARGIN if dtype == torch.float32 else 0.0


class Verifier:
    """Samples and accepts; holds settings only."""

    def __init__(
        self, *, rule: str, tie_margin: float, sample_elements: int, stats: EngineStats, compiled: bool = False
    ) -> None:
        self._draw = sample_compiled if compiled else sample
        self.rule, self.tie_margin, self.sample_elements = rule, tie_margin, sample_elements
        self.stats = stats

    def verify(
        self, step: VerifyStep, logits: Tensor, params: RowParams, seeds: UInt64Array, decide: Decide
    ) -> Outcome:
        """Outcome of a step with logits [N, V], settings and seeds of its B rows."""
        if self.rule == "one-hot":
            return _one_hot(step, logits, params, seeds)
        nodes = self._sample(step, logits, params, seeds)
        while True:
            outcome = _accept(step, nodes)
            near = [] if self.tie_margin == 0 else list(_near_ties(step, nodes, outcome, self.tie_margin))
            if not near:
                return outcome
            for row, node in near:
                self._settle(step, nodes, row, node, params, seeds, decide)

    def _sample(self, step: VerifyStep, logits: Tensor, params: RowParams, seeds: UInt64Array) -> _Nodes:
        keys = row_keys(seeds[step.layout.row_of], step.positions)
        chunk = max(1, self.sample_elements // logits.shape[1])
        if len(logits) <= chunk:
            return _Nodes(self._draw(logits, params.rows(step.layout.row_of), keys))
        parts = [
            self._draw(part, params.rows(step.layout.row_of[i : i + chunk]), keys[i : i + chunk])
            for i, part in ((i, logits[i : i + chunk]) for i in range(0, len(logits), chunk))
        ]
        return _Nodes(Samples(*(torch.cat(columns) for columns in zip(*parts, strict=True))))

    def _settle(
        self,
        step: VerifyStep,
        nodes: _Nodes,
        row: int,
        node: int,
        params: RowParams,
        seeds: UInt64Array,
        decide: Decide,
    ) -> None:
        """Replace a near tie by the choice of the plain forward."""
        self.stats.tie_recomputes += 1
        packed = step.layout.grid[row, node]
        drafted = step.tokens[step.layout.grid[row, _path_to(step, row, node)]]
        keys = row_keys(seeds[row : row + 1], step.positions[packed : packed + 1])
        one = _Nodes(self._draw(decide(row, drafted), params.rows(np.array([row])), keys))
        nodes.tokens[packed], nodes.logprobs[packed] = one.tokens[0], one.logprobs[0]
        nodes.margins[packed] = np.inf


class _Nodes:
    """Samples of packed nodes on the host: one copy."""

    __slots__ = ("logprobs", "margins", "tokens")

    def __init__(self, samples: Samples) -> None:
        tokens, logprobs, margins = samples
        if tokens.device.type != "cpu":
            both = torch.stack((logprobs, margins)).view(torch.int32)
            host = torch.cat((tokens.to(torch.int32)[None], both)).cpu()
            tokens, (logprobs, margins) = host[0].long(), host[1:].view(torch.float32)
        self.tokens: Int64Array = tokens.numpy()
        self.logprobs: npt.NDArray[np.float32] = logprobs.numpy()
        self.margins: npt.NDArray[np.float32] = margins.numpy()


def _accept(step: VerifyStep, nodes: _Nodes) -> Outcome:
    bad = np.flatnonzero(np.isnan(nodes.logprobs))
    if step.layout.queries == 1:
        rows = len(nodes.tokens)
        zero = np.zeros((rows, 1), np.int64)
        return Outcome(np.ones(rows, np.int64), zero, nodes.tokens[:, None], nodes.logprobs[:, None], bad)
    grid = step.layout.grid
    parents = None if step.trees is None else torch.from_numpy(step.trees.parents)
    target, draft = torch.from_numpy(nodes.tokens[grid]), torch.from_numpy(step.tokens[grid])
    verified = verify_coupled(target, draft, parents, torch.from_numpy(step.layout.counts - 1))
    path = verified.path.numpy()
    logprobs = nodes.logprobs[np.take_along_axis(grid, path, 1)]
    return Outcome(verified.accepted.numpy() + 1, path, verified.tokens.numpy(), logprobs, bad)


def _near_ties(step: VerifyStep, nodes: _Nodes, outcome: Outcome, tie_margin: float) -> Iterator[tuple[int, int]]:
    """First near tie (row, node) of each row's path."""
    if not (nodes.margins < tie_margin).any():
        return
    margins = nodes.margins[np.take_along_axis(step.layout.grid, outcome.path, 1)]
    emitted = np.arange(outcome.path.shape[1]) < outcome.counts[:, None]
    near = (margins < tie_margin) & emitted
    for row in np.flatnonzero(near.any(axis=1)):
        yield int(row), int(outcome.path[row, near[row].argmax()])


def _path_to(step: VerifyStep, row: int, node: int) -> Int64Array:
    """Draft nodes from the root, excluded, to `node`."""
    if step.trees is None:
        return np.arange(1, node + 1)
    return np.flatnonzero(step.trees.ancestors[row, node])[1:]


def _one_hot(step: VerifyStep, logits: Tensor, params: RowParams, seeds: UInt64Array) -> Outcome:
    layout = step.layout
    grid = torch.from_numpy(layout.grid).to(logits.device)
    nodes = params.rows(layout.row_of)
    log_p = policy_log_probs(logits, nodes)
    bad = np.flatnonzero(log_p.isnan().any(dim=-1).cpu().numpy())
    padded = log_p[grid]
    draft = torch.from_numpy(step.tokens[layout.grid]).to(logits.device)
    parents = None if step.trees is None else torch.from_numpy(step.trees.parents).to(logits.device)
    lengths = torch.from_numpy(layout.counts - 1).to(logits.device)
    verified = verify_one_hot(padded, draft, parents, lengths, seeds, step.positions[layout.grid])
    if nodes.greedy is not None:  # what a greedy row reports is not the point mass that it samples
        padded = log_probs(logits, nodes)[grid]
    logprobs = at(padded, verified.path, verified.tokens).cpu().numpy()
    path, accepted, tokens = (part.cpu().numpy() for part in verified)
    return Outcome(accepted + 1, path, tokens, logprobs, bad)
