"""The trainings that the tests look at. Each runs once, when the first test asks for it; a minute or two each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rolltree.verl import VerlOptions, config_lines
from rolltree.verl.cpu.demo import PLAIN_LINES as PLAIN
from rolltree.verl.cpu.demo import POLL_SECONDS
from rolltree.verl.cpu.run import RunError, RunRecord, train
from rolltree.verl.cpu.settings import RunSettings

GRPO = RunSettings(algorithm="grpo", validate=True)
DAPO = RunSettings(algorithm="dapo")
PPO = RunSettings(algorithm="ppo", greedy=True, learning_rate=0.1, validate=True, samples=1, prompts=32, batch=16)
MULTI_TURN = RunSettings(algorithm="multi-turn", greedy=True, learning_rate=0.1, validate=True, samples=2, entropy=0.1)
AHEAD = RunSettings(
    algorithm="grpo", prompts=24, replicas=2, extra=("trainer.save_freq=2", "data.shuffle=True", "data.seed=3")
)
"""Three steps an epoch, shuffled; checkpoints in mid-epoch; two replicas, so that the router foresees who gets what."""
CUT = 4
"""Step from whose checkpoint a second training goes on, without run-ahead."""
EAGER = {"always": True, "holdout": 0, "budget_share": 5, "max_slowdown": 9}
"""Launches wherever there is slack, whether it pays on this machine or not."""
ASYNC = RunSettings(algorithm="grpo", mode="colocate_async", replicas=2)


def rolltree(**options: object) -> tuple[str, ...]:
    """The user's lines."""
    return tuple(config_lines(options=VerlOptions(poll_seconds=POLL_SECONDS, **options)))  # type: ignore[arg-type]


RUNS: dict[str, tuple[RunSettings, tuple[str, ...]]] = {
    "grpo": (GRPO, rolltree()),
    "grpo plain": (GRPO, PLAIN),
    "dapo": (DAPO, rolltree()),
    "dapo plain": (DAPO, PLAIN),
    "ppo": (PPO, rolltree()),
    "ppo plain": (PPO, PLAIN),
    "multi-turn": (MULTI_TURN, rolltree()),
    "multi-turn plain": (MULTI_TURN, PLAIN),
    "async": (ASYNC, rolltree(key_column="problem", run_ahead=True)),
    "ahead": (AHEAD, rolltree(run_ahead=EAGER)),
    "ahead resumed": (AHEAD, rolltree()),
}


@dataclass(slots=True)
class Runs:
    """Runs what is asked for, once."""

    folder: Path
    done: dict[str, RunRecord | RunError]

    def __getitem__(self, name: str) -> RunRecord:
        if name not in self.done:
            settings, lines = RUNS[name]
            folder = self.folder / name.replace(" ", "-")
            folder.mkdir()
            if name == "ahead resumed":
                lines = (*lines, *self._resume())
            try:
                self.done[name] = train(settings, folder, lines=lines)
            except RunError as error:
                self.done[name] = error
        record = self.done[name]
        if isinstance(record, RunError):
            raise record
        return record

    def _resume(self) -> tuple[str, ...]:
        """Go on from a checkpoint of the training that ran ahead."""
        assert self["ahead"].metrics
        checkpoint = self.folder / "ahead" / "checkpoints" / f"global_step_{CUT}"
        return ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}")
