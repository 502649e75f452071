"""Run-ahead: idle slots of a batch's long tail generate rollouts of prompts that are sampled soon.

Pure: `RunAheadController` decides from frozen snapshots, `LookAhead` shows coming batches without moving what a
checkpoint sees. The driver (`rolltree.serving.ahead`) says what an engine does, and hosts carry the decisions out. The
text enters the trees and nothing else: no caller ever sees it.
"""

from rolltree.runahead.config import RunAheadConfig
from rolltree.runahead.controller import RunAheadController
from rolltree.runahead.lookahead import LookAhead
from rolltree.runahead.types import Candidate, Decision, EngineStep, Launch, PromptOutcome, Snapshot

__all__ = [
    "Candidate",
    "Decision",
    "EngineStep",
    "Launch",
    "LookAhead",
    "PromptOutcome",
    "RunAheadConfig",
    "RunAheadController",
    "Snapshot",
]
