"""Which prompts of a generation call begin conversations, and which go on with one of the call before.

TRL's tool loop calls the engine again with prompt + completion + tool output, for some of the rows, in their order. So
a call whose every prompt begins with a row's text of the last call, in that order, is a later turn; any other call is
a first one. Plain lists of token ids; knows no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Text = tuple[list[int], int]
"""Token ids, and how many of them are the first prompt of the conversation: its root."""


class Turns:
    """The rows of the last call: their whole text, and how long their first prompts are."""

    def __init__(self) -> None:
        self._rows: list[Text] = []

    def roots(self, prompts: Sequence[list[int]]) -> list[int]:
        """Return for each prompt how many of its tokens are the first prompt of its conversation."""
        rows, lengths = iter(self._rows), list[int]()
        for prompt in prompts:
            root = next((root for text, root in rows if prompt[: len(text)] == text), None)
            if root is None:
                return [len(prompt) for prompt in prompts]
            lengths.append(root)
        return lengths

    def ended(self, rows: Iterable[Text]) -> None:
        """Note what the call made: the text of each row, prompt and completion, and its root."""
        self._rows = list(rows)
