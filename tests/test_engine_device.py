"""What a step asks of the device, seen on a CPU: no operation that would make a GPU's host wait, none per request.

The one wait that a step needs is the copy of its tokens to the host; it is no operation that is forbidden here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rolltree.sampling.noise as noise
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.engine.cost import FixedLengths
from rolltree.sampling import SamplingParams
from rolltree.types import DraftBatch
from tests.engine_tools import tiny_model

torch.set_num_threads(1)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal", "repeat_interleave")


class Operations(TorchDispatchMode):
    """Counts operations, those that wait under the name "wait"."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.count[name] += 1
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)  # finds its places first
        if name in WAITS or by_mask:
            self.count["wait"] += 1
        return func(*args, **(kwargs or {}))


class Ragged(FixedLengths):
    """Useless drafts of different lengths, as chains or as trees of two branches."""

    def __init__(self, tree: bool) -> None:
        self.length, self.every, self.tree = 6, 3, tree

    def draft(self, handles, limits) -> DraftBatch:
        batch = super().draft(handles, limits)
        if self.tree:
            batch.parents[:, 1::2] = np.maximum(batch.parents[:, 1::2] - 1, -1)
        return DraftBatch(
            tokens=batch.tokens, parents=batch.parents, lengths=batch.lengths, survival=batch.survival,
            is_chain=not self.tree,
        )  # fmt: skip


def operations(rows: int, *, rule: str, tree: bool, sampling: dict[str, Any], mixed: bool) -> Counter[str]:
    engine = Engine(
        tiny_model(), EngineConfig(slots=rows, max_length=120, max_draft=6, rule=rule, tie_margin=0.0), Ragged(tree)
    )
    for i in range(rows):
        odd = {"temperature": 0.8} if mixed and i % 2 else {}
        engine.submit(Request([1, 2, 3], SamplingParams(seed=i, max_tokens=100, **(sampling | odd))))
    for _ in range(3):
        engine.step()
    with Operations() as seen:
        engine.step()
    assert engine.stats.drafted > 0
    return seen.count


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"top_p": 0.9, "min_p": 0.02}, {"top_k": 5}])
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_waits_for_nothing_and_does_nothing_per_request(monkeypatch, sampling, tree: bool, mixed: bool) -> None:
    monkeypatch.setattr(noise, "_NATIVE", None)  # the noise as a GPU makes it
    few = operations(6, rule="coupled", tree=tree, sampling=sampling, mixed=mixed)
    many = operations(48, rule="coupled", tree=tree, sampling=sampling, mixed=mixed)
    assert few["wait"] == many["wait"] == 0
    assert sum(many.values()) <= sum(few.values()) + 4  # one move of accepted branches more or less
    assert sum(many.values()) > 50


def test_the_other_rule_waits_as_often_for_many_as_for_few(monkeypatch) -> None:
    monkeypatch.setattr(noise, "_NATIVE", None)
    counts = [operations(n, rule="one-hot", tree=True, sampling={}, mixed=False) for n in (6, 48)]
    assert counts[0]["wait"] == counts[1]["wait"] == 0
    assert abs(sum(counts[0].values()) - sum(counts[1].values())) <= 4


def test_the_counter_sees_what_waits() -> None:
    x = torch.arange(4.0)
    with Operations() as seen:
        x.sum().item()
        x.nonzero()
        x[x > 1]
    assert seen.count["wait"] == 3
