"""A map with a bound: beyond it, what was used least recently leaves."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

Value = TypeVar("Value")
MANY = 100_000
"""More conversations than can be running at once."""


class Recent(OrderedDict[str, Value]):
    """Entries by name, oldest first; setting one is using it, looking at it is not. Not thread-safe."""

    def __init__(self, capacity: int = MANY) -> None:
        super().__init__()
        self.capacity = capacity

    def __setitem__(self, name: str, value: Value) -> None:
        super().__setitem__(name, value)
        self.move_to_end(name)
        while len(self) > self.capacity:
            self.popitem(last=False)
