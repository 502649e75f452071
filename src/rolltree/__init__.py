"""rolltree: faster RL rollouts, unchanged samples.

Importing this package loads neither torch nor any engine or trainer; names are resolved when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rolltree.budget import CostModel
    from rolltree.cache import RolloutCache
    from rolltree.config import CacheConfig, DraftConfig
    from rolltree.drafting import TreeDrafter
    from rolltree.engine import Engine, EngineConfig, Request, Result
    from rolltree.errors import (
        CapacityError,
        InvalidInputError,
        MissingDependencyError,
        RequestError,
        RolltreeError,
        SessionClosedError,
        StoreError,
    )
    from rolltree.sampling import SamplingParams
    from rolltree.step_cost import StepCostObserver
    from rolltree.store import RolloutStore
    from rolltree.traces import StoredRollout
    from rolltree.types import DraftBatch, Drafter

__version__ = "0.1.0"

_NAMES = {
    "budget": "CostModel",
    "cache": "RolloutCache",
    "config": "CacheConfig DraftConfig",
    "drafting": "TreeDrafter",
    "engine": "Engine EngineConfig Request Result",
    "errors": (
        "CapacityError InvalidInputError MissingDependencyError RequestError RolltreeError"
        " SessionClosedError StoreError"
    ),
    "sampling": "SamplingParams",
    "step_cost": "StepCostObserver",
    "store": "RolloutStore",
    "traces": "StoredRollout",
    "types": "DraftBatch Drafter",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "CacheConfig",
    "CapacityError",
    "CostModel",
    "DraftBatch",
    "DraftConfig",
    "Drafter",
    "Engine",
    "EngineConfig",
    "InvalidInputError",
    "MissingDependencyError",
    "Request",
    "RequestError",
    "Result",
    "RolloutCache",
    "RolloutStore",
    "RolltreeError",
    "SamplingParams",
    "SessionClosedError",
    "StepCostObserver",
    "StoreError",
    "StoredRollout",
    "TreeDrafter",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module 'rolltree' has no attribute {name!r}")
    return getattr(import_module(f"rolltree.{_MODULE[name]}"), name)
