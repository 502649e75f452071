"""The durable store of finished rollouts: one SQLite file, from which trees are rebuilt after a restart or an eviction.

It knows prompts, tokens and versions; it neither drafts nor holds trees (the cache does), nor loads a framework.
"""

from rolltree.store.store import RolloutStore
from rolltree.store.upkeep import StoreInfo, compact, info, verify
from rolltree.traces.rollout import StoredRollout

__all__ = ["RolloutStore", "StoreInfo", "StoredRollout", "compact", "info", "verify"]
