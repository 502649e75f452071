"""One finished rollout as the store and the trace format hold it. Plain data; checked by `StoredRollout.of`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.tokens import as_integer, as_key, as_tokens, as_version
from rolltree.types import Float32Array, Int32Array, TokenIds

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredRollout:
    """A prompt and what was generated after it."""

    prompt_token_ids: Int32Array
    """int32 [p]."""
    token_ids: Int32Array
    """int32 [n], tool output between turns included."""
    key: str | None = None
    """The user's id of the prompt or conversation; None: the prompt is its own key."""
    version: int = 0
    """Policy version that generated it."""
    sample: int | None = None
    """Which of the prompt's samples it is, where the caller said so."""
    reward: float | None = None
    """Never NaN."""
    logprobs: Float32Array | None = None
    """float32 [n]: of each token under the policy that sampled it."""
    context: tuple[Span, ...] = ()
    """Parts [start, stop) of `token_ids` that were not generated: tool output."""
    id: int = 0
    """Position in the store: later rollouts have larger ids, never used twice; 0 before it is stored."""

    @classmethod
    def of(
        cls, prompt: TokenIds, tokens: TokenIds, *, key: str | None = None, version: int = 0, sample: int | None = None,
        logprobs: Sequence[float] | Float32Array | None = None, reward: float | None = None,
        context: Sequence[Span] = (),
    ) -> StoredRollout:  # fmt: skip
        """Check and copy what a caller hands over.

        numpy's scalars become plain numbers, a NaN reward None.

        Raises:
            InvalidInputError: a value of the wrong type or out of range, as many log-probabilities as tokens are not
                there, or spans that do not lie in order inside the rollout.

        """
        tokens = as_tokens(tokens, "token_ids").copy()
        return cls(
            prompt_token_ids=as_tokens(prompt, "prompt_token_ids").copy(), token_ids=tokens, key=as_key(key),
            version=as_version(version), sample=as_sample(sample), reward=as_reward(reward),
            logprobs=None if logprobs is None else as_logprobs(logprobs, len(tokens)),
            context=as_spans(context, len(tokens)),
        )  # fmt: skip

    def checked(self) -> StoredRollout:
        """A copy of one that was made by hand, checked; errors as `of`."""
        return StoredRollout.of(
            self.prompt_token_ids, self.token_ids, key=self.key, version=self.version, sample=self.sample,
            logprobs=self.logprobs, reward=self.reward, context=self.context,
        )  # fmt: skip

    def segments(self) -> Iterator[tuple[Int32Array, bool]]:
        """The rollout cut into (tokens, whether they are context), in order."""
        return segments(self.token_ids, self.context)


def segments(tokens: Int32Array, context: Sequence[Span]) -> Iterator[tuple[Int32Array, bool]]:
    """Text cut into (tokens, whether they are context), in order; nothing empty."""
    at = 0
    for start, stop in (*context, (len(tokens),) * 2):
        if start > at:
            yield tokens[at:start], False
        if stop > start:
            yield tokens[start:stop], True
        at = stop


def as_sample(sample: object) -> int | None:
    """Which sample, a 64-bit integer; InvalidInputError otherwise."""
    return None if sample is None else as_integer(sample, "sample")


def as_reward(reward: Any) -> float | None:
    """A plain float; NaN is no reward, as None is.

    Raises:
        InvalidInputError: no real number.

    """
    try:
        if isinstance(reward, str | bytes):
            raise TypeError("it is text")
        number = None if reward is None else float(reward)
    except Exception as error:  # no number, an integer beyond all floats, an array
        raise InvalidInputError("reward", reward, "a number, or None", str(error)) from error
    return None if number is None or number != number else number + 0.0  # SQLite has no -0.0


def as_logprobs(logprobs: object, tokens: int | None = None) -> Float32Array:
    """Log-probabilities as float32 [tokens], a copy; None among them is NaN.

    Raises:
        InvalidInputError: another number of them than `tokens` (None: any), no numbers, or beyond float32.

    """
    try:
        given = np.asarray(logprobs)
        if given.dtype.kind not in "fiuO" or given.ndim != 1:
            raise ValueError(f"dtype {given.dtype}, shape {given.shape}")
        if given.dtype.kind == "O" and not all(one is None or isinstance(one, float | int) for one in given):
            raise ValueError("something that is no number is among them")
        with np.errstate(over="raise"):
            probs = np.array(given, np.float32)
    except Exception as error:  # rows of several lengths, a tensor on a GPU, 1e300
        raise InvalidInputError("logprobs", logprobs, "one number for each token", str(error)) from error
    if tokens is not None and len(probs) != tokens:
        raise InvalidInputError("logprobs", f"shape {probs.shape}", f"one for each of {tokens} tokens")
    return probs


def as_spans(context: Any, tokens: int) -> tuple[Span, ...]:
    """Parts [start, stop) of a rollout, in order.

    Raises:
        InvalidInputError: no pairs of whole numbers, or not in order inside 0..tokens.

    """
    try:
        spans = tuple((as_integer(a, "start", 0), as_integer(b, "stop", 0)) for a, b in context)
    except Exception as error:  # no list, no pairs, no numbers
        raise InvalidInputError("context", context, "pairs (start, stop) of whole numbers", str(error)) from error
    edges = [edge for span in spans for edge in span]
    if edges != sorted(edges) or (edges and edges[-1] > tokens):
        raise InvalidInputError("context", list(spans), f"spans in order inside 0..{tokens}")
    return spans
