"""Counter-based noise: a pure function of (seed, position, token).

No state, so the noise of a token does not depend on what was drafted, on the batch or on the order of
calls. Not for cryptography. `native/noise.h` holds the same hash in C++: the same 32 bits for every key and
token, floats that agree to rounding. On the CPU the native version is used where it is built, always the
same one in a process.

    key = splitmix64(seed + GOLDEN (position + 1)),  k0, k1 = low and high half
    x   = mix2(mix1(token * 0x9E3779B1 + k0) + k1)   (finalisers of murmur3 and of "triple32" kind, 32 bits)
    v   = (x + 1/2) / 2**32 in (0, 1),  E = -log1p(-v) exponential,  g = -log E Gumbel

splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
Invariant: `position` counts generated tokens from 0; `domain` keeps independent uses of one seed apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rolltree.types import Float32Array

UInt64Array: TypeAlias = npt.NDArray[np.uint64]

COUPLED = 0
"""Domain of the noise that picks the token: the drafter may read it."""
ACCEPT = 0xA5F1_52D3_96B1_07C5
"""Domain of the uniforms that accept or reject a draft."""
RESIDUAL = 0x3C79_AC49_2BA7_B653
"""Domain of the noise that samples after a rejection."""

_GOLDEN = 0x9E3779B97F4A7C15
_LARGEST_UNIFORM = 1 - 2**-24  # the float32 below 1: rounding must not make a uniform 1


def row_keys(seeds: UInt64Array, positions: npt.NDArray[np.integer], domain: int = COUPLED) -> UInt64Array:
    """Keys, uint64 [N], of the requests' seeds [N] at positions [N] (0 is the first generated token)."""
    steps = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    return _splitmix64((seeds ^ np.uint64(domain)) + steps)


def gumbel(keys: UInt64Array, vocab: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise, float32 [N, vocab], for the tokens 0..vocab-1 under each key [N]."""
    if _NATIVE is not None and torch.device(device).type == "cpu":
        return torch.from_numpy(_NATIVE(keys, vocab))
    return _gumbel_torch(keys, vocab, device)


def uniform(keys: UInt64Array, tokens: Tensor) -> Tensor:
    """Uniforms in (0, 1), float32 of the shape of `tokens`: one token under each of as many keys."""
    k0, k1 = key_halves(keys, tokens.device)
    bits = _hash(tokens.to(torch.int32), k0.view(tokens.shape), k1.view(tokens.shape))
    return _unit(bits).float().clamp_(max=_LARGEST_UNIFORM)


def _gumbel_torch(keys: UInt64Array, vocab: int, device: torch.device | str) -> Tensor:
    k0, k1 = key_halves(keys, device)
    tokens = torch.arange(vocab, dtype=torch.int32, device=device)
    return noise_of(tokens, k0.unsqueeze(-1), k1.unsqueeze(-1))


def noise_of(tokens: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, of int32 `tokens` under keys with the halves `k0` and `k1`; broadcasts."""
    v = _unit(_hash(tokens, k0, k1))  # float64: both tails keep float32 precision
    return v.neg_().log1p_().neg_().log_().neg_().float()


def _splitmix64(z: UInt64Array) -> UInt64Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key_halves(keys: UInt64Array, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of the keys as int32 [N] each: one small transfer."""
    words = np.stack([keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)]).astype(np.uint32).view(np.int32)
    k0, k1 = torch.from_numpy(words).to(device, non_blocking=True).unbind(0)
    return k0, k1


def _hash(tokens: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
    """The 32 bits x as int32; int32 products wrap, which is the arithmetic mod 2**32 wanted."""
    x = tokens * _int32(0x9E3779B1) + k0
    x = _mix(x, 16, 0x85EBCA6B, 13, 0xC2B2AE35, 16)
    return _mix(x.add_(k1), 15, 0x2C1B3C6D, 12, 0x297A2D39, 15)


def _mix(x: Tensor, s1: int, m1: int, s2: int, m2: int, s3: int) -> Tensor:
    for shift, factor in ((s1, m1), (s2, m2), (s3, 1)):
        mask = (1 << (32 - shift)) - 1  # int32 shifts copy the sign: clear it
        x = x.bitwise_xor_((x >> shift).bitwise_and_(mask))
        if factor != 1:
            x = x.mul_(_int32(factor))
    return x


def _int32(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _unit(bits: Tensor) -> Tensor:
    """(x + 1/2) / 2**32 as float64, exact."""
    x = bits.to(torch.float64)
    return x.add_(0.5).add_((x < 0).to(torch.float64), alpha=2.0**32).mul_(2.0**-32)


def _native_gumbel() -> Callable[[UInt64Array, int], Float32Array] | None:
    try:
        module = importlib.import_module("rolltree._native")
    except ImportError:
        return None
    return cast("Callable[[UInt64Array, int], Float32Array] | None", getattr(module, "gumbel_noise", None))


_NATIVE = _native_gumbel()
