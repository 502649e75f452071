"""verl's kind of data loader, interrupted and resumed, with a look at coming batches and without: the same order."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from rolltree.verl.loader import PeekingLoader, attach


class Rows(Dataset[dict[str, float]]):
    """Rows that are augmented at random, by all the generators that a trainer might use as well."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> dict[str, float]:
        return {"index": index, "noise": random.random() + np.random.random() + float(torch.rand(()))}


def trainer(workers: int, seed: int) -> Any:
    """As much of verl's trainer as fetches batches, with its shuffling sampler."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    rows = Rows()
    loader = StatefulDataLoader(
        rows, batch_size=3, num_workers=workers, drop_last=True, sampler=RandomSampler(rows, generator=generator)
    )
    return SimpleNamespace(train_dataloader=loader, train_dataloader_it=None)


def fetch(made: Any) -> list[int]:
    """verl's `_fetch_one_gen_batch`, to the letter of its use of the loader."""
    try:
        if made.train_dataloader_it is None:
            made.train_dataloader_it = iter(made.train_dataloader)
        batch = next(made.train_dataloader_it)
    except StopIteration:
        made.train_dataloader_it = iter(made.train_dataloader)
        batch = next(made.train_dataloader_it)
    return [int(index) for index in batch["index"]]


def train(steps: int, depth: int, workers: int, state: Any = None) -> tuple[list[list[int]], Any]:
    """The batches of some steps, looking `depth` ahead in each, and the checkpoint after the last."""
    made, batches = trainer(workers, seed=7), []
    if state is not None:
        made.train_dataloader.load_state_dict(state)
    for _ in range(steps):
        batches.append(fetch(made))
        if depth:
            seen = attach(made).peek(depth)
            assert len(seen) <= depth
    return batches, made.train_dataloader.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_interrupted_and_resumed_with_and_without(workers: int, cut: int) -> None:
    """Four batches an epoch: cuts within the first epoch, at its end, and in the second."""
    whole, _ = train(9, 0, workers)
    for before, after in ((0, 2), (2, 0), (2, 2), (5, 1)):
        first, state = train(cut, before, workers)
        rest, _ = train(9 - cut, after, workers, state)
        plain_first, plain_state = train(cut, 0, workers)
        plain_rest, _ = train(9 - cut, 0, workers, plain_state)
        assert first == plain_first == whole[:cut]
        assert rest == plain_rest


def test_the_trainers_own_random_numbers_stay() -> None:
    def draws(depth: int) -> list[float]:
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        made = trainer(0, seed=7)
        fetch(made)
        if depth:
            attach(made).peek(depth)
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    assert draws(3) == draws(0)


def test_the_rest_is_the_loaders() -> None:
    made = trainer(0, seed=7)
    loader = attach(made)
    assert isinstance(made.train_dataloader, PeekingLoader)
    assert attach(made) is loader
    assert len(loader) == 4
    assert loader.batch_size == 3
    assert loader.peek(2) == ()  # no epoch is under way
