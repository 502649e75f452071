"""The part of coupled sampling in vLLM's V1 runner that needs no vLLM: what is drawn, and verification."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rolltree._native import murmur3_exponential
from rolltree.errors import RolltreeError
from rolltree.vllm.coupled_v1 import Draws, pick

VOCAB = 7


def one_pick(logits: torch.Tensor, seed: int, position: int) -> int:
    noise = [-np.log(murmur3_exponential(seed % 2**64, position, token)) for token in range(logits.shape[0])]
    return int((logits.double() + torch.tensor(noise)).argmax())


def test_picks_are_the_argmax_of_logits_and_noise() -> None:
    """Of each seed and position, masked tokens never; more tokens than the core computes noise for at a time."""
    torch.manual_seed(0)
    logits = torch.randn(40, 2500)
    logits[:, 1200:1300] = float("-inf")
    seeds = np.arange(40, dtype=np.int64) * 10**17 - 2 * 10**18
    positions = np.arange(40, dtype=np.int64) * 31
    expected = [one_pick(row, int(seed), int(at)) for row, seed, at in zip(logits, seeds, positions, strict=True)]
    assert pick(logits, seeds, positions).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_draft_is_accepted_iff_it_is_the_pick(seed: int) -> None:
    """Against a loop over random rows: with and without drafts, greedy and sampled, some drafts right."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    counts = [rng.randrange(4) for _ in range(6)]
    seeds, last = np.array([rng.getrandbits(62) for _ in counts]), np.array([rng.randrange(9, 99) for _ in counts])
    heat = torch.tensor([rng.choice([0.0, 1.0]) for _ in counts])
    logits, bonus = torch.randn(sum(counts), VOCAB), torch.tensor([[rng.randrange(VOCAB)] for _ in counts])
    drafts, expected = list[int](), list[list[int]]()
    for row, count in enumerate(counts):
        emitted, alive = list[int](), True
        for step in range(count):
            at, values = int(last[row]) - count + step, logits[len(drafts)]
            right = one_pick(values, int(seeds[row]), at) if heat[row] else int(values.argmax())
            drafts.append(right if rng.random() < 0.7 else (right + 1) % VOCAB)
            emitted += [right] if alive else []
            alive = alive and drafts[-1] == right
        emitted += [int(bonus[row])] if alive else []
        expected.append(emitted + [-1] * (max(counts) + 1 - len(emitted)))
    metadata = SimpleNamespace(all_greedy=False, all_random=bool(heat.all()), temperature=heat)
    ends = torch.tensor(counts).cumsum(0)
    given = torch.tensor(drafts, dtype=torch.int32)
    out = Draws(seeds, last).verify(given, counts, max(counts), ends, None, logits, bonus.int(), metadata)
    assert out.tolist() == expected
    assert out.dtype == torch.int32


def test_what_a_coupled_draw_would_not_heed_is_refused() -> None:
    draws = Draws(np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(RolltreeError, match="certain drafts"):
        draws.verify(None, [1], 1, None, torch.ones(1, VOCAB), None, None, None)
