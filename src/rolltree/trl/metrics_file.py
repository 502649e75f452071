"""Writes what each generation call did into a run's folder, for `rolltree report`. Reads the trainer, never changes it.

The reward comes from the trainer's own log lines, through a callback: it is there for the steps that the trainer logs.
Nothing here ends a training: what cannot be read or written is left out, with one warning (`SideChannel`).
"""

from __future__ import annotations

from os import PathLike
from typing import Any

from transformers import TrainerCallback

from rolltree.drafting import TreeDrafter
from rolltree.metrics import DraftStats
from rolltree.runlog import RunLog, SideChannel
from rolltree.trl.history import RolloutRecord


class MetricsFile:
    """One training's way into a `RunLog`; only the first process writes."""

    def __init__(self, folder: str | PathLike[str], drafter: TreeDrafter | None) -> None:
        self._folder, self._drafter = folder, drafter
        self._log: RunLog | None = None
        self._before = DraftStats()
        self._guard = SideChannel(f"the metrics in {folder}")

    def write(self, record: RolloutRecord, trainer: Any) -> None:
        """Add a line for a generation call."""
        if not trainer.accelerator.process_index:
            with self._guard:
                self._write(record, trainer)

    def _write(self, record: RolloutRecord, trainer: Any) -> None:
        if self._log is None:
            self._log = RunLog(self._folder, about(trainer))
            if hasattr(trainer, "add_callback"):
                trainer.add_callback(RewardLine(self._log, self._guard))
        mode = "train" if record.training else "eval"
        # What engine and drafter both count is the engine's: it knows the rows without drafts.
        self._log.write(record.step, self._drafts() | record.sums(), gauges=self._gauges(), mode=mode)

    def _drafts(self) -> dict[str, float]:
        if self._drafter is None:
            return {}
        now = self._drafter.snapshot()
        new, self._before = now.since(self._before), now
        return new.sums()

    def _gauges(self) -> dict[str, float]:
        if self._drafter is None:
            return {}
        held = self._drafter.cache.stats()
        return {"tree_bytes": held.bytes, "cached_prompts": held.prompts, "cached_rollouts": held.rollouts}


class RewardLine(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes the mean reward where the trainer logs it."""

    def __init__(self, log: RunLog, guard: SideChannel) -> None:
        self._log, self._guard = log, guard

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """A log line after an optimizer step: its rollouts were those of the step before."""
        with self._guard:
            if logs and "reward" in logs:  # None where no reward function had one
                self._log.write(max(state.global_step - 1, 0), gauges={"reward": logs["reward"]})


def about(trainer: Any) -> dict[str, object]:
    """What a reader of the report wants to know."""
    model = getattr(trainer.model, "config", None)
    return {"trainer": type(trainer).__name__, "model": getattr(model, "_name_or_path", "") or "unnamed"}
