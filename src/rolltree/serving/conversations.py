"""First prompts of conversations: later turns, whose prompts extend the first, use the tree of the first."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from rolltree.serving.request import Request
from rolltree.types import Int32Array


class Conversations:
    """First prompts, of the latest `capacity` conversations."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._prompts: OrderedDict[str, Int32Array] = OrderedDict()

    def remember(self, name: str, prompt: Int32Array) -> None:
        """Name `prompt` as the first of a conversation, unless it has one; the name becomes the most recent."""
        self._prompts.setdefault(name, prompt)
        self._prompts.move_to_end(name)
        while len(self._prompts) > self.capacity:
            self._prompts.popitem(last=False)

    def root(self, id: str, request: Request, prompt: Int32Array) -> Int32Array:
        """Return what a request's tree begins with: its prompt, or that of its conversation's first turn."""
        session = request.options.session
        name = f"request:{id}" if session is None else f"session:{session}"
        root = self.find(name, prompt)
        if session is not None:
            self.remember(name, root)
        return root

    def find(self, name: str, prompt: Int32Array) -> Int32Array:
        """Return the first prompt of the conversation when `prompt` extends it, else `prompt`."""
        root = self._prompts.get(name)
        return root if root is not None and np.array_equal(prompt[: len(root)], root) else prompt
