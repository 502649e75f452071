"""Run-ahead: idle slots of a batch's long tail generate rollouts of prompts that are sampled soon.

Pure: `RunAhead` decides from frozen snapshots, `LookAhead` shows coming batches without moving what a checkpoint sees.
Engines and trainers carry the decisions out (`rolltree.engine.runahead`, `rolltree.vllm.runahead`). The text enters the
trees and nothing else: no caller ever sees it.
"""

from rolltree.runahead.config import RunAheadConfig
from rolltree.runahead.controller import RunAhead
from rolltree.runahead.lookahead import LookAhead
from rolltree.runahead.returns import ReturnMeter
from rolltree.runahead.types import Candidate, Decision, EngineStep, Launch, PromptOutcome, Snapshot

__all__ = [
    "Candidate",
    "Decision",
    "EngineStep",
    "Launch",
    "LookAhead",
    "PromptOutcome",
    "ReturnMeter",
    "RunAhead",
    "RunAheadConfig",
    "Snapshot",
]
