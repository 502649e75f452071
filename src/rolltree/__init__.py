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
    from rolltree.sampling import SamplingParams
    from rolltree.step_cost import StepCostObserver
    from rolltree.store import RolloutStore

__version__ = "0.1.0"

_HOME = {
    "CacheConfig": "config",
    "CostModel": "budget",
    "DraftConfig": "config",
    "Engine": "engine",
    "EngineConfig": "engine",
    "Request": "engine",
    "Result": "engine",
    "RolloutCache": "cache",
    "RolloutStore": "store",
    "SamplingParams": "sampling",
    "StepCostObserver": "step_cost",
    "TreeDrafter": "drafting",
}

__all__ = [
    "CacheConfig",
    "CostModel",
    "DraftConfig",
    "Engine",
    "EngineConfig",
    "Request",
    "Result",
    "RolloutCache",
    "RolloutStore",
    "SamplingParams",
    "StepCostObserver",
    "TreeDrafter",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rolltree' has no attribute {name!r}")
    return getattr(import_module(f"rolltree.{_HOME[name]}"), name)
