"""What one request asks of the sampler.

Holds and validates settings. Does not sample, holds no tensors: `rolltree.sampling.rows` makes tensors of a
batch of these. Invariant: an instance that exists is valid.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from operator import attrgetter
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.tokens import check_whole

MIN_TEMPERATURE = 1e-5  # below this logits / temperature leaves float32's useful range; 0 says greedy exactly
MAX_TEMPERATURE = 1e38  # float32 ends there; far below it every token is as likely as any other
SEED_LIMIT = 1 << 64
INT32_LIMIT = 1 << 31  # token ids and counts are int32
_NO_POLICY = ("max_tokens", "stop_token_ids", "seed")  # what does not change a token's distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling policy, end of generation and seed of one request."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token and ignores top_k, top_p, min_p and the seed."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose mass reaches top_p; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the most likely one; 0 keeps all."""
    max_tokens: int = 256
    """Generate at most this many tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """Generation ends after any of these ids; the id itself is part of the output."""
    seed: int | None = None
    """Unsigned 64-bit seed; None draws one from the operating system when the request is submitted."""

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, self._temperature_ok, "0, or from 1e-05 to 1e+38")
        check_whole("sampling.top_k", self.top_k, 0, INT32_LIMIT - 1, "0 keeps all tokens.")
        _check_number("top_p", self.top_p, lambda x: 0 < x <= 1, "in (0, 1]", "1 keeps all tokens.")
        _check_number("min_p", self.min_p, lambda x: 0 <= x <= 1, "in [0, 1]", "0 keeps all tokens.")
        check_whole("sampling.max_tokens", self.max_tokens, 1, INT32_LIMIT - 1)
        self._check_stop_token_ids()
        if self.seed is not None and not (_is_integer(self.seed) and 0 <= self.seed < SEED_LIMIT):
            raise InvalidInputError("sampling.seed", self.seed, "None or an integer in [0, 2**64)")

    @staticmethod
    def _temperature_ok(value: float) -> bool:
        return value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE

    def _check_stop_token_ids(self) -> None:
        ids = self.stop_token_ids
        if not isinstance(ids, tuple) or not all(_is_integer(t) and 0 <= t < INT32_LIMIT for t in ids):
            raise InvalidInputError("sampling.stop_token_ids", ids, "a tuple of token ids from 0 to 2**31 - 1")

    @property
    def policy(self) -> tuple[object, ...]:
        """What the distribution of a token depends on: every field but limits, stops and the seed."""
        values: tuple[object, ...] = _policy_getter(type(self))(self)  # type: ignore[arg-type]
        return values

    @property
    def greedy(self) -> bool:
        """Whether the request takes the most likely token."""
        return self.temperature == 0

    def with_seed(self) -> SamplingParams:
        """These settings with a definite seed: the given one, or a fresh one from the operating system."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(64))


@cache
def _policy_getter(kind: type[SamplingParams]) -> attrgetter[Any]:
    return attrgetter(*(each.name for each in fields(kind) if each.name not in _NO_POLICY))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_number(name: str, value: object, ok: Callable[[float], bool], allowed: str, fix: str = "") -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and ok(value)):  # type: ignore[arg-type]
        raise InvalidInputError(f"sampling.{name}", value, allowed, fix)
