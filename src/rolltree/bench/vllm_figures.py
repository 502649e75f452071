"""What is said of an epoch that a vLLM engine generated, beside the same epoch of the plain engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rolltree.bench.vllm_worker import Epoch


def figures(done: Epoch, base: Epoch | None) -> dict[str, float | int | None]:
    """Return counts, seconds and ratios for JSON; `speedup` is per token, None without the plain engine's epoch."""
    steps = max(done.tokens - done.accepted, 1)
    return {
        "tokens": done.tokens,
        "seconds": done.seconds,
        "tokens_per_second": done.tokens / done.seconds,
        "tokens_per_step": done.tokens / steps,
        "drafted_per_step": done.drafted / steps,
        "acceptance_rate": done.accepted / done.drafted if done.drafted else 0.0,
        "draft_share": done.draft_seconds / done.seconds,
        **_step_times(done.step_seconds),
        "speedup": (base.seconds / base.tokens) / (done.seconds / done.tokens) if base and done.tokens else None,
    }


def _step_times(seconds: Sequence[float]) -> dict[str, float | int | None]:
    median, late = (float(np.percentile(seconds, q)) * 1e3 if seconds else None for q in (50, 99))
    return {"decode_steps": len(seconds), "step_milliseconds_median": median, "step_milliseconds_p99": late}


def same_texts(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> int:
    """Return how many texts are equal, place by place."""
    return sum(list(a) == list(b) for a, b in zip(ours, theirs, strict=True))
