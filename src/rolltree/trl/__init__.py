"""TRL adapter: `GRPOTrainer(..., rollout_func=RolloutFunction())` samples through rolltree's engine.

The trainer is unmodified, and no line of TRL is imported here: the adapter reads the trainer it is handed.
"""

from rolltree.trl.history import RolloutRecord
from rolltree.trl.rollout import RolloutFunction

__all__ = ["RolloutFunction", "RolloutRecord"]
