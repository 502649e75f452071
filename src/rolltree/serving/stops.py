"""Where a generation really ended: an engine's front end looks for stop strings while the engine runs on.

Only the last tokens are looked at, because the front end sees every token at most a few steps late. `min_tokens` holds
for stop strings here, and for stop tokens in `requests`: one rule, so that both end a text where the engine does.
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

    def end(
        self, output: Sequence[int], stops: Sequence[str], *, min_tokens: int = 0, skip_special: bool = True
    ) -> int | None:
        """Return how many tokens of `output` count, up to the one that completes a stop string; None: all of them.

        Args:
            output: generated tokens.
            stops: the request's stop strings.
            min_tokens: a stop string that is complete within so many tokens is passed over.
            skip_special: special tokens have no text.

        """
        self._tokenizer = self._tokenizer or self._make()
        if self._tokenizer is None or len(output) <= min_tokens:
            return None
        skipped = max(0, len(output) - TAIL)
        tail, passed = list(output[skipped:]), max(0, min_tokens - skipped)

        def text(count: int) -> str:
            return str(self._tokenizer.decode(tail[:count], skip_special_tokens=skip_special))

        start = len(text(passed)) if passed else 0
        if not _has_stop(text(len(tail)), stops, start):
            return None
        low, high = passed, len(tail)  # tail[:low] has no stop, tail[:high] has one
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _has_stop(text(middle), stops, start) else (middle, high)
        return skipped + high


def _has_stop(text: str, stops: Sequence[str], start: int) -> bool:
    """Return whether any stop string ends behind the first `start` characters."""
    return any(text.find(stop, max(0, start - len(stop) + 1)) != -1 for stop in stops)
