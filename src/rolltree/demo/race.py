"""Advances a plain and a speculative side batch by batch, in turns, and sums what they did up into epochs.

A side is a training; this file does not care of what, and imports neither torch nor TRL. The side that goes first
changes with every batch, so neither always meets the warmer caches.
Interrupting keeps the epochs that both sides finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rolltree.trl.history import RolloutRecord


class Side(Protocol):
    """One of the two runs; the lists grow by one entry with every `advance`."""

    completions: list[list[list[int]]]
    rewards: list[float]

    @property
    def history(self) -> list[RolloutRecord]:
        """Cost of the rollouts, by batch."""

    @property
    def generate_seconds(self) -> list[float]:
        """Seconds of stock `model.generate`, by batch; empty when it was not timed."""

    def advance(self) -> None:
        """Roll out the next batch, and train on it where the side trains."""

    def stop(self) -> None:
        """Release what the side holds."""

    def weights_sha256(self) -> str | None:
        """SHA-256 of the weights as they are; None where nothing is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Both sides over one pass through the prompts. Seconds are of rollouts only, not of optimizer steps."""

    epoch: int
    """1 for the first."""
    reward: float
    """Mean reward of the speculative side."""
    reward_plain: float
    """Mean reward of the plain side: the same number, or something is wrong."""
    tokens: int
    """Completion tokens."""
    tokens_per_step: float
    """Tokens per (completion, forward pass) of the speculative side."""
    tokens_per_step_plain: float
    """The same of the plain side: 1, but for the token that the prefill gives."""
    acceptance_rate: float
    """Share of the drafted tokens that were kept."""
    seconds: float
    """Rollout seconds with rolltree."""
    seconds_plain: float
    """Rollout seconds of the same engine without speculation."""
    speedup: float
    """seconds_plain / seconds."""
    seconds_generate: float | None
    """Seconds of the trainer's own `model.generate`: same prompts and weights, its own random samples."""
    speedup_over_generate: float | None
    """seconds_generate / seconds."""


@dataclass(slots=True)
class Race:
    """The two sides and how far they came."""

    plain: Side
    fast: Side
    batches_per_epoch: int
    epochs: int
    interrupted: bool = False

    def run(self, on_batch: Callable[[Race], None]) -> None:
        """Run to the end or to Ctrl-C, which sets `interrupted`; `on_batch` follows each pair."""
        try:
            for batch in range(self.epochs * self.batches_per_epoch):
                for side in (self.plain, self.fast) if batch % 2 == 0 else (self.fast, self.plain):
                    side.advance()
                on_batch(self)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.plain.stop()
            self.fast.stop()

    @property
    def batches(self) -> int:
        """Batches that both sides finished."""
        return min(len(side.rewards) for side in (self.plain, self.fast))

    def finished(self) -> list[Epoch]:
        """The epochs that both sides finished, oldest first."""
        return [self._epoch(i) for i in range(self.batches // self.batches_per_epoch)]

    def identity(self) -> dict[str, Any]:
        """Whether the two sides did the same, over the batches that both finished."""
        pairs = [
            (a, b)
            for batch in range(self.batches)
            for a, b in zip(self.plain.completions[batch], self.fast.completions[batch], strict=True)
        ]
        plain, fast = self.plain.weights_sha256(), self.fast.weights_sha256()
        level = len(self.plain.rewards) == len(self.fast.rewards) and plain is not None
        return {
            "identical_rollouts": sum(a == b for a, b in pairs),
            "rollouts": len(pairs),
            "identical_rewards": self.plain.rewards[: self.batches] == self.fast.rewards[: self.batches],
            "identical_weights": plain == fast if level else None,
            "weights_sha256": {"plain": plain, "rolltree": fast} if level else None,
        }

    def _epoch(self, index: int) -> Epoch:
        span = slice(index * self.batches_per_epoch, (index + 1) * self.batches_per_epoch)
        fast, plain = _total(self.fast.history[span]), _total(self.plain.history[span])
        generate = sum(self.plain.generate_seconds[span]) or None
        return Epoch(
            epoch=index + 1,
            reward=_mean(self.fast.rewards[span]),
            reward_plain=_mean(self.plain.rewards[span]),
            tokens=fast.tokens,
            tokens_per_step=fast.tokens_per_step,
            tokens_per_step_plain=plain.tokens_per_step,
            acceptance_rate=fast.acceptance_rate,
            seconds=fast.seconds,
            seconds_plain=plain.seconds,
            speedup=plain.seconds / fast.seconds,
            seconds_generate=generate,
            speedup_over_generate=generate / fast.seconds if generate else None,
        )


def epoch_rows(race: Race) -> list[dict[str, Any]]:
    """The finished epochs as plain dictionaries, for JSON."""
    return [asdict(epoch) for epoch in race.finished()]


def _total(records: list[RolloutRecord]) -> RolloutRecord:
    from rolltree.trl.history import total

    return total(records)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
