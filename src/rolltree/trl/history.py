"""What one call of the rollout function did: sums, from which ratios are made last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

from rolltree.engine import EngineStats
from rolltree.metrics import with_ratios


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """Counters of one generation call; add records up before dividing."""

    step: int
    """The trainer's global step when the call was made: the policy version."""
    training: bool
    """False for a call made by the trainer's evaluation loop."""
    sequences: int
    """Completions generated."""
    seconds: float
    """Wall clock of the engine."""
    engine: EngineStats = field(default_factory=EngineStats)
    """What the engine counted, completion tokens with their end tokens."""

    @property
    def tokens(self) -> int:
        """Completion tokens, end tokens included."""
        return self.engine.tokens

    @property
    def row_steps(self) -> int:
        """(request, decoding forward pass) pairs."""
        return self.engine.row_steps

    @property
    def drafted(self) -> int:
        """Draft tokens that were verified."""
        return self.engine.drafted

    @property
    def accepted(self) -> int:
        """Draft tokens that were kept."""
        return self.engine.accepted

    @property
    def tokens_per_step(self) -> float:
        """Tokens per (request, forward pass); 1.0 without speculation."""
        return self.engine.tokens_per_step

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were kept; 0 when none was drafted."""
        return self.engine.acceptance_rate

    def sums(self) -> dict[str, float]:
        """Everything counted, under flat names, for a run's log; `engine_steps` is `steps` under its older name."""
        engine = self.engine.sums()
        return {"sequences": self.sequences, "seconds": self.seconds, "engine_steps": self.engine.steps, **engine}

    def metrics(self) -> dict[str, float]:
        """What the trainer's log shows, by name."""
        return {f"rolltree/{name}": value for name, value in with_ratios(self.sums()).items()}


def total(records: Iterable[RolloutRecord]) -> RolloutRecord:
    """The sum of at least one record, with the step and mode of the last."""
    rows = list(records)
    return replace(
        rows[-1],
        sequences=sum(row.sequences for row in rows),
        seconds=sum(row.seconds for row in rows),
        engine=reduce(add, (row.engine for row in rows)),
    )
