"""What one call of the rollout function did: sums, from which ratios are made last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """Counters of one generation call; add records up before dividing."""

    step: int
    """The trainer's global step when the call was made: the policy version."""
    training: bool
    """False for a call made by the trainer's evaluation loop."""
    sequences: int
    """Completions generated."""
    tokens: int
    """Completion tokens, end tokens included."""
    engine_steps: int
    """Forward passes that decoded."""
    row_steps: int
    """(request, decoding forward pass) pairs."""
    drafted: int
    """Draft tokens that were verified."""
    accepted: int
    """Draft tokens that were kept."""
    drafter_errors: int
    """Exceptions of the drafter that the engine went on without."""
    seconds: float
    """Wall clock of the engine."""

    @property
    def tokens_per_step(self) -> float:
        """Tokens per (request, forward pass); 1.0 without speculation."""
        return self.tokens / max(self.row_steps, 1)

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were kept; 0 when none was drafted."""
        return self.accepted / max(self.drafted, 1)

    def metrics(self) -> dict[str, float]:
        """What the trainer's log shows, by name."""
        return {
            "rolltree/seconds": self.seconds,
            "rolltree/tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            "rolltree/tokens_per_step": self.tokens_per_step,
            "rolltree/acceptance_rate": self.acceptance_rate,
        }


_SUMMED = tuple(field.name for field in fields(RolloutRecord) if field.name not in ("step", "training"))


def total(records: Iterable[RolloutRecord]) -> RolloutRecord:
    """The sum of at least one record, with the step and mode of the last."""
    rows = [asdict(record) for record in records]
    return RolloutRecord(**(rows[-1] | {name: sum(row[name] for row in rows) for name in _SUMMED}))
