"""verl's data loader with a look at the batches to come; what the trainer gets and what it saves stay the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rolltree.runahead import LookAhead


class PeekingLoader:
    """Stands in for the trainer's `StatefulDataLoader`; see `LookAhead` for what holds.

    Args:
        loader: the trainer's.
        running: its iterator that the trainer has already taken batches from, None where it has none.
    """

    def __init__(self, loader: Any, running: Any = None) -> None:
        self._loader = loader
        self.ahead: LookAhead[Any] | None = None if running is None else self._looking(running)

    def __iter__(self) -> LookAhead[Any]:
        self.ahead = self._looking(iter(self._loader))
        return self.ahead

    def __len__(self) -> int:
        return len(self._loader)

    def peek(self, depth: int) -> tuple[Any, ...]:
        """Return the next batches of this epoch; fewer at its end."""
        return () if self.ahead is None else self.ahead.peek(depth)

    def state_dict(self) -> Any:
        """Return what a checkpoint is to hold: the state as if nobody had looked."""
        return self._loader.state_dict() if self.ahead is None else self.ahead.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go on where a checkpoint stopped, from the next `iter` on."""
        self.ahead = None
        self._loader.load_state_dict(state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

    def _looking(self, iterator: Iterator[Any]) -> LookAhead[Any]:
        return LookAhead(iterator, self._loader.state_dict, isolated)


def attach(trainer: Any) -> PeekingLoader:
    """Put a `PeekingLoader` in the place of a verl trainer's loader, within an epoch."""
    loader = trainer.train_dataloader
    if not isinstance(loader, PeekingLoader):
        loader = PeekingLoader(loader, trainer.train_dataloader_it)
        trainer.train_dataloader = loader
        if loader.ahead is not None:
            trainer.train_dataloader_it = loader.ahead
    return loader


@contextmanager
def isolated() -> Iterator[None]:
    """Leave the process's random generators as they were: a data set may draw from them when a batch is made."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
