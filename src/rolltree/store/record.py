"""One finished rollout as the store holds it. Plain data; checked when made by `StoredRollout.of`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.tokens import as_tokens
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

        Raises:
            InvalidInputError: bad token ids, as many log-probabilities as tokens are not there, or spans that do not
                lie in order inside the rollout.

        """
        prompt, tokens = as_tokens(prompt, "prompt_token_ids").copy(), as_tokens(tokens, "token_ids").copy()
        probs = None if logprobs is None else np.array(logprobs, np.float32)
        if probs is not None and probs.shape != tokens.shape:
            raise InvalidInputError("logprobs", f"shape {probs.shape}", f"one for each of {len(tokens)} tokens")
        edges = [edge for span in context for edge in span]
        if edges != sorted(edges) or (edges and not 0 <= edges[0] <= edges[-1] <= len(tokens)):
            raise InvalidInputError("context", list(context), f"spans in order inside 0..{len(tokens)}")
        for name, number in (("version", version), ("sample", sample or 0)):
            if not -(2**63) <= number < 2**63:
                raise InvalidInputError(name, number, "a 64-bit integer")
        return cls(
            prompt_token_ids=prompt, token_ids=tokens, key=key, version=int(version),
            sample=None if sample is None else int(sample),
            reward=None if reward is None else float(reward), logprobs=probs,
            context=tuple((int(a), int(b)) for a, b in context),
        )  # fmt: skip

    def segments(self) -> list[tuple[Int32Array, bool]]:
        """The rollout cut into (tokens, whether they are context), in order."""
        cuts, at = list[tuple[Int32Array, bool]](), 0
        for start, stop in (*self.context, (len(self.token_ids),) * 2):
            cuts += [(self.token_ids[at:start], False), (self.token_ids[start:stop], True)]
            at = stop
        return [(part, tool) for part, tool in cuts if len(part)]
