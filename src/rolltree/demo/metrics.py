"""Writes the race into a run's folder, a line a batch, for `rolltree report`."""

from __future__ import annotations

from collections.abc import Callable

from rolltree.demo.config import DemoConfig
from rolltree.demo.race import Race
from rolltree.runlog import RunLog


def batch_writer(config: DemoConfig) -> Callable[[Race], None]:
    """What to call after each batch; does nothing without `config.run_dir`."""
    if config.run_dir is None:
        return lambda race: None
    log = RunLog(config.run_dir, {"command": "rolltree demo", **config.settings()})

    def write(race: Race) -> None:
        at = race.batches - 1
        record, plain = race.fast.history[at], race.plain.history[at]
        rewards = {"reward": race.fast.rewards[at], "reward_plain": race.plain.rewards[at]}
        log.write(at, record.sums() | {"seconds_plain": plain.seconds}, gauges=rewards)

    return write
