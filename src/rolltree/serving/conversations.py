"""The first prompt of each conversation: later turns, whose prompts extend it, belong to its tree.

The one map from conversations to first prompts: inside an engine, and on the side of who asks it. It holds names and
lengths, no prompts.
"""

from __future__ import annotations

from rolltree.recent import MANY, Recent
from rolltree.tokens import as_tokens, prompt_key
from rolltree.types import Int32Array, TokenIds


class Conversations:
    """First prompts, of the `capacity` conversations that were used last."""

    def __init__(self, capacity: int = MANY) -> None:
        self._first: Recent[tuple[int, str]] = Recent(capacity)  # tokens of the first prompt, and its name

    def remember(self, name: str, prompt: TokenIds) -> str:
        """Take `prompt` for the first of a conversation, unless it has one; return what the first is called.

        The conversation becomes the most recent.

        Raises:
            InvalidInputError: bad token ids.

        """
        first = self._first.get(name)
        self._first[name] = first = first or (len(prompt), prompt_key(prompt))
        return first[1]

    def root(self, name: str, prompt: TokenIds) -> Int32Array:
        """Return the first prompt of the conversation when `prompt` extends it, else `prompt`; errors as above."""
        tokens, (length, key) = as_tokens(prompt, "prompt"), self._first.get(name, (0, ""))
        start = tokens[:length]
        return start if len(start) == length and prompt_key(start) == key else tokens
