"""Shows the batches that a data loader gives next, without changing what the trainer gets or what a checkpoint says.

Holds what was pulled early in a queue; the loader's state is copied before each pull, and `state_dict` answers with the
copy that belongs to the first batch not taken yet. So a run that looks ahead and one that does not write the same
checkpoints and resume in the same order. Never looks past the end of the source (an epoch): what comes after it may
depend on random numbers that the trainer draws in between. Knows no trainer and no torch.

The source must not draw from random generators that the trainer uses as well while a batch is made; where it does, pass
`isolated`, a context manager that puts them back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Generic, TypeVar

T = TypeVar("T")


class LookAhead(Generic[T]):
    """An iterator over `source` whose next elements can be seen before they are taken.

    Args:
        source: the loader's iterator, of one epoch.
        state: returns the loader's state as a checkpoint would store it; None: `state_dict` is not offered.
        isolated: entered around every early pull.

    """

    def __init__(
        self,
        source: Iterator[T],
        state: Callable[[], object] | None = None,
        isolated: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._source, self._state, self._isolated = source, state, isolated
        self._ahead: deque[tuple[T, object]] = deque()
        self._end: BaseException | None = None
        self._end_state: object = None

    def __iter__(self) -> LookAhead[T]:
        return self

    def __next__(self) -> T:
        if self._ahead:
            return self._ahead.popleft()[0]
        if self._end is not None:
            end, self._end = self._end, None  # a source may go on after its end, as the loader itself would
            raise end
        return next(self._source)

    def peek(self, depth: int = 1) -> tuple[T, ...]:
        """Return the next `depth` elements, fewer at the end of the source, and leave them to be taken.

        An exception of the source is kept and raised when its element is taken.
        """
        while len(self._ahead) < depth and self._end is None:
            before = deepcopy(self._state()) if self._state else None
            try:
                with self._isolated():
                    self._ahead.append((next(self._source), before))
            except Exception as end:
                self._end, self._end_state = end, before
        return tuple(element for element, _ in list(self._ahead)[:depth])

    def state_dict(self) -> object:
        """Return the loader's state as if nothing had been looked at; the caller may change it."""
        assert self._state is not None, "LookAhead was made without `state`"
        if self._ahead:
            return deepcopy(self._ahead[0][1])
        return self._state() if self._end is None else deepcopy(self._end_state)
