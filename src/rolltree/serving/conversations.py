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

    def root(self, id: str, session: str | None, prompt: TokenIds) -> Int32Array:
        """Return what a request's tree begins with: its prompt, or the first of its conversation, which it extends.

        `session` names the conversation; None: that of the request alone, remembered where it was restarted.
        """
        name = f"request:{id}" if session is None else f"session:{session}"
        tokens, (length, key) = as_tokens(prompt, "prompt"), self._first.get(name, (0, ""))
        start = tokens[:length]
        root = start if len(start) == length and prompt_key(start) == key else tokens
        if session is not None:
            self.remember(name, root)
        return root
