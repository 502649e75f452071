"""rolltree in TRL's trainers, unmodified; no line of TRL is imported here, the trainer that is handed over is read.

`attach(trainer)` where the trainer generates by vLLM; `GRPOTrainer(..., rollout_func=RolloutFunction())` where it does
not: then rolltree's own engine samples.
"""

from rolltree.trl.attach import Attachment, attach
from rolltree.trl.history import RolloutRecord
from rolltree.trl.rollout import RolloutFunction

__all__ = ["Attachment", "RolloutFunction", "RolloutRecord", "attach"]
