"""Makes the cache after a step what the rows say: accepted tree paths become chains, what failed is zeroed."""

from __future__ import annotations

import torch

from rolltree.engine.emit import Emission
from rolltree.engine.kv_cache import SlotCache
from rolltree.engine.step import Outcome, VerifyStep
from rolltree.types import Int64Array


def repair(cache: SlotCache, step: VerifyStep, outcome: Outcome, emission: Emission) -> None:
    """Put accepted tree paths where a chain would be, and zero what a failed forward wrote."""
    if step.trees is not None:
        node = outcome.path[emission.row, emission.order]
        moved = node != emission.order
        base = emission.row[moved] * cache.length + step.start[emission.row[moved]]
        if len(base):
            cache.move(_places(cache, base + node[moved]), _places(cache, base + emission.order[moved]))
    if len(outcome.bad_nodes):
        row = step.layout.row_of[outcome.bad_nodes]
        cache.clear(_places(cache, row * cache.length + step.start[row] + step.layout.node[outcome.bad_nodes]))


def _places(cache: SlotCache, places: Int64Array) -> torch.Tensor:
    return torch.from_numpy(places).to(cache.data.device)
