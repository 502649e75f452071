"""A policy whose output can be enumerated, drafts for it, and the statistic that compares samples with it.

The policy is a table of logits: row a is what follows token a, the last row is what follows the prompt. `filtered`
restates the sampling settings in plain numpy float64, one row at a time, as the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from rolltree.sampling import (
    RowParams,
    SamplingParams,
    Verified,
    policy_log_probs,
    row_keys,
    sample,
    verify_coupled,
    verify_one_hot,
)

Shape = tuple[int, ...]
CHAIN = (0, 0, 1, 2)
TREE = (0, 0, 0, 1, 1, 2, 4)
RANKS = {CHAIN: (0, 0, 1, 0), TREE: (0, 0, 1, 1, 0, 0, 0)}
"""Each node drafts the token of this rank after its parent's token; siblings have different ranks."""
MIN_EXPECTED = 10.0
CHUNK = 10_000  # rows at once: stays in the processor's cache


def filtered(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities float64 [V] that the settings give to one row of logits."""
    vocab, scaled = len(logits), logits.astype(np.float64) / params.temperature
    keep = np.isfinite(scaled)
    if params.top_k:
        keep &= scaled >= np.sort(scaled)[-min(params.top_k, vocab)]
    mass = np.where(keep, np.exp(scaled - scaled.max()), 0.0)
    if params.top_p < 1:
        below = 0.0
        for token in sorted(range(vocab), key=lambda t: (scaled[t], t))[:-1]:
            below += mass[token] / mass.sum()
            keep[token] &= below > 1 - params.top_p
    keep &= np.exp(scaled - scaled.max()) >= params.min_p
    mass = np.where(keep, mass, 0.0)
    return mass / mass.sum()


@dataclass(frozen=True)
class ToyPolicy:
    table: Tensor
    """Logits float32 [V + 1, V]."""
    params: SamplingParams

    @property
    def vocab(self) -> int:
        return self.table.shape[1]

    @cached_property
    def rows(self) -> RowParams:
        return RowParams.of([self.params])

    @cached_property
    def log_p(self) -> Tensor:
        return policy_log_probs(self.table, self.rows)

    @cached_property
    def order(self) -> Tensor:
        return self.table.argsort(dim=-1, descending=True, stable=True)

    @cached_property
    def first(self) -> np.ndarray:
        """Enumerated probabilities [V] of the first token."""
        return filtered(self.table[-1].numpy(), self.params)

    @cached_property
    def joint(self) -> np.ndarray:
        """Enumerated probabilities [V * V] of the first two tokens."""
        second = np.array([filtered(row, self.params) for row in self.table[:-1].numpy()])
        return (self.first[:, None] * second).ravel()

    def draft(self, last: Tensor, shape: Shape) -> Tensor:
        """Draft tokens [N, Q] after `last` [N]."""
        nodes = [last]
        for parent, rank in zip(shape[1:], RANKS[shape][1:], strict=True):
            nodes.append(self.order[nodes[parent], rank])
        return torch.stack(nodes, dim=1)


def depths(shape: Shape) -> np.ndarray:
    found = [0]
    for parent in shape[1:]:
        found.append(found[parent] + 1)
    return np.array(found)


def step(policy: ToyPolicy, rule: str, shape: Shape, last: Tensor, seeds: np.ndarray, position: int) -> Verified:
    """One verification step of every row; one row in eight drafts nothing, the others up to all of the shape."""
    count = len(seeds)
    parents = None if shape == CHAIN else torch.tensor(shape).expand(count, -1)
    number = seeds.astype(np.int64)
    lengths = torch.from_numpy(np.where(number % 8 == 0, 0, 1 + number % (len(shape) - 1)))
    positions = np.broadcast_to(position + depths(shape), (count, len(shape)))
    draft = policy.draft(last, shape)
    if rule == "one-hot":
        return verify_one_hot(policy.log_p[draft], draft, parents, lengths, seeds, positions)
    keys = row_keys(np.repeat(seeds, len(shape)), positions.ravel())
    target = sample(policy.table[draft.flatten()], policy.rows, keys).tokens.view_as(draft)
    return verify_coupled(target, draft, parents, lengths)


def first_two(policy: ToyPolicy, rule: str, shape: Shape, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second token of a rollout for each seed."""
    parts = [_first_two(policy, rule, shape, seeds[i : i + CHUNK]) for i in range(0, len(seeds), CHUNK)]
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def _first_two(policy: ToyPolicy, rule: str, shape: Shape, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decode one step, and one more where it accepted nothing."""
    start = torch.full((len(seeds),), policy.vocab)
    verified = step(policy, rule, shape, start, seeds, 0)
    a, b = verified.tokens[:, 0], verified.tokens[:, 1].clone()
    short = verified.accepted == 0
    again = step(policy, rule, shape, a[short], seeds[short.numpy()], 1)
    b[short] = again.tokens[:, 0]
    return a.numpy(), b.numpy()


def p_values(policy: ToyPolicy, rule: str, shape: Shape, seeds: np.ndarray) -> tuple[float, float]:
    """p-values of the first token and of the first two, against the enumerated probabilities."""
    a, b = first_two(policy, rule, shape, seeds)
    return chi_square(a, policy.first), chi_square(a * policy.vocab + b, policy.joint)


def chi_square(samples: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value of Pearson's test; cells that expect fewer than 10 are pooled, and an impossible sample gives 0."""
    observed = np.bincount(samples, minlength=len(probabilities)).astype(np.float64)
    if observed[probabilities == 0].any():
        return 0.0
    expected = probabilities * len(samples)
    rare = expected < MIN_EXPECTED
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    if len(expected) == 1:
        return 1.0
    return float(chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))
