"""The noise of other engines that the native core can follow: vLLM's murmur3, against the algorithm in plain Python."""

from __future__ import annotations

import math
import random

import numpy as np

from rolltree import RolloutCache, TreeDrafter
from rolltree._native import murmur3_exponential

WORD = 0xFFFFFFFF


def murmur3(words: list[int]) -> int:
    """MurmurHash3_x86_32 of 32-bit words, seed 0 (Appleby, public domain)."""
    h = 0
    for word in words:
        k = word * 0xCC9E2D51 & WORD
        k = ((k << 15 | k >> 17) & WORD) * 0x1B873593 & WORD
        h ^= k
        h = ((h << 13 | h >> 19) & WORD) * 5 + 0xE6546B64 & WORD
    h ^= 4 * len(words)
    h = (h ^ h >> 16) * 0x85EBCA6B & WORD
    h = (h ^ h >> 13) * 0xC2B2AE35 & WORD
    return h ^ h >> 16


def test_the_algorithm_is_murmur3() -> None:
    """A published value: the hash of four zero bytes under seed 0."""
    assert murmur3([0]) == 0x2362F9DE


def test_noise_is_murmur3_of_seed_position_and_token() -> None:
    drawn = random.Random(0)
    for _ in range(2000):
        seed, position, token = drawn.getrandbits(64), drawn.randrange(1 << 20), drawn.randrange(200_000)
        bits = murmur3([seed & WORD, seed >> 32, position, token])
        expected = -math.log1p(-(bits + 0.5) / 2**32)
        assert math.isclose(murmur3_exponential(seed, position, token), expected, rel_tol=2e-6)


def test_drafts_follow_the_noise_at_forks() -> None:
    """After a fork of two equally frequent tokens the core proposes the one that the sampler is going to draw."""
    prompt, left, right, seed = [1, 2, 3], 10, 20, 12345
    hits = 0
    drafter = TreeDrafter(RolloutCache())
    for k in range(400):
        drafter.cache.add(prompt, [left if k % 2 else right, 30, 31])
    for k in range(64):
        session = drafter.cache.open(prompt, seed=seed + k, coupled=True, murmur3_offset=len(prompt) - 1)
        drawn = min((left, right), key=lambda token: murmur3_exponential(seed + k, len(prompt) - 1, token))
        draft = drafter.draft(np.array([session]), np.array([1], np.int32))
        hits += int(draft.tokens[0, 0]) == drawn
        drafter.advance(np.array([session]), np.array([drawn], np.int32), np.array([0, 1], np.int32))
        drafter.close(session, keep=False)
    assert hits >= 60
