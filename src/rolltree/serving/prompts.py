"""One request to vLLM as run-ahead sees it: its prompt's tokens, sampling parameters and name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rolltree.tokens import prompt_key

_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request for one rollout."""

    token_ids: Sequence[int]
    sampling: Any
    """`vllm.SamplingParams` with n = 1."""
    key: str | None = None
    """The user's id of the prompt, as in `extra_args["rolltree"]["key"]`; None: the prompt's tokens."""

    @property
    def identity(self) -> str:
        """What the controller calls the prompt."""
        return prompt_key(self.token_ids, self.key)


def request_name(kind: str) -> str:
    """Request ids: their own, and never repeated."""
    return f"rolltree-{kind}-{next(_numbers)}"
