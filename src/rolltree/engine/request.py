"""What goes into the engine and what comes out. Plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rolltree.errors import RequestError
from rolltree.sampling import SamplingParams
from rolltree.types import TokenIds

FinishReason = Literal["stop", "length", "error", "abort"]


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout to generate."""

    prompt_token_ids: TokenIds
    """Token ids of the prompt, at least one."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Sampling policy, limits and seed; without a seed one is drawn when the request is submitted."""
    key: str | None = None
    """Name of the prompt for the drafter; None lets it key by the prompt's tokens."""
    remember: bool = True
    """False: drafted for like others, but forgotten when it ends, by the drafter and by every store (evaluation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One finished rollout."""

    id: int
    """What `Engine.submit` returned."""
    token_ids: list[int]
    """Generated tokens, a final stop token included."""
    logprobs: list[float]
    """Log-probability of each generated token under the sampling policy (greedy: at temperature 1)."""
    finish_reason: FinishReason
    """"stop", "length", "error" (see `error`), or "abort"."""
    prompt_token_ids: list[int]
    """The request's prompt."""
    steps: int
    """Verify steps that this request took part in."""
    drafted: int
    """Draft nodes that were verified for it."""
    seed: int | None
    """The seed that was used, drawn or given; None if none was given and the request never ran."""
    error: RequestError | None = None
    """Why the request failed; what was generated before is kept."""


def unstarted(id: int, request: Request, reason: FinishReason, error: RequestError | None = None) -> Result:
    """Result of a request that never ran."""
    return Result(
        id=id,
        token_ids=[],
        logprobs=[],
        finish_reason=reason,
        prompt_token_ids=list(request.prompt_token_ids),
        steps=0,
        drafted=0,
        seed=request.sampling.seed,
        error=error,
    )
