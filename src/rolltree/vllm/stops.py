"""Where a generation really ended: vLLM's front end looks for stop strings while the engine runs on.

Only the last tokens are looked at, because the front end sees every token at most a few steps late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

TAIL = 512
"""Tokens that are searched: far more than a stop string's own and what a few steps of drafts can add."""


class StopStrings:
    """Finds stop strings in token ids.

    Args:
        tokenizer: makes the tokenizer when it is first needed; may return None.

    """

    def __init__(self, tokenizer: Callable[[], Any]) -> None:
        self._make = tokenizer
        self._tokenizer: Any = None

    def end(self, output: Sequence[int], stops: Sequence[str]) -> int | None:
        """Return how many tokens of `output` count, up to the one that completes a stop string; None: all of them."""
        self._tokenizer = self._tokenizer or self._make()
        if self._tokenizer is None:
            return None
        skipped = max(0, len(output) - TAIL)
        tail = list(output[skipped:])
        if not self._has_stop(tail, stops):
            return None
        low, high = 0, len(tail)  # tail[:low] has no stop, tail[:high] has one
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._has_stop(tail[:middle], stops) else (middle, high)
        return skipped + high

    def _has_stop(self, tokens: Sequence[int], stops: Sequence[str]) -> bool:
        text = self._tokenizer.decode(tokens)
        return any(stop in text for stop in stops)
