"""The way in: `trainer.v1.sampler.custom_sampler.{path=pkg://rolltree.verl,name=sampler}`.

verl makes its sampler first of all, with the trainer at hand. This one fills in the rest of rolltree's configuration
(see `lines`), and then lets verl make the sampler that it would have made without a custom one: the class for the
trainer's mode, DAPO's group filter and its numbers included. Around that it logs what rolltree did in each step.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from omegaconf import open_dict

from rolltree.runlog import RunLog, SideChannel
from rolltree.verl.account import Account, split
from rolltree.verl.ahead import Ahead
from rolltree.verl.lines import fill_in, runs_ahead
from rolltree.verl.options import VerlOptions
from rolltree.verl.servers import Servers

log = logging.getLogger("rolltree.verl")

NO_RUN_AHEAD = (
    "it needs the synchronous trainer (the others generate while they train, and have no idle tail), "
    "drafts by rolltree, and with several replicas rolltree's router."
)


def sampler(**kwargs: Any) -> Sampler:
    """Make the sampler; called by verl's trainer with its own arguments, of which only the trainer is needed.

    Raises:
        InvalidInputError: an option is unknown or outside what is allowed.
    """
    trainer = kwargs["refill_fn"].__self__  # the bound method of the trainer that submits prompts
    options = VerlOptions.read(kwargs.get("sampler_kwargs"))
    for line in fill_in(trainer.config, options):
        log.warning("rolltree sets %s (it was not set)", line)
    if options.run_ahead and not runs_ahead(trainer.config):
        log.warning("run_ahead is off: %s", NO_RUN_AHEAD)
    return Sampler(stock_sampler(trainer), options, trainer)


def stock_sampler(trainer: Any) -> Any:
    """Let verl make its own sampler, as if no custom one were configured."""
    config = trainer.config.trainer.v1.sampler
    with open_dict(config):
        custom, config.custom_sampler = config.custom_sampler, None
        try:
            return trainer._build_replay_buffer()
        finally:
            config.custom_sampler = custom


class Sampler:
    """verl's sampler with an account of each step. Everything but `sample` is the wrapped one's."""

    def __init__(self, wrapped: Any, options: VerlOptions, trainer: Any) -> None:
        self._wrapped, self._options, self._trainer = wrapped, options, trainer
        self._ahead: Ahead | None = None
        self._account = Account()
        self._servers: Servers | None = None
        self._metrics = SideChannel("rolltree's numbers of a step")
        self._run_log = RunLog(options.run_log) if options.run_log else None
        if options.poll_seconds is not None:
            wrapped.poll_interval = options.poll_seconds

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Wait for a batch as verl does; training batches bring rolltree's numbers along."""
        if partition_id != "train":
            return self._wrapped.sample(global_steps, partition_id, batch_size)  # type: ignore[no-any-return]
        started = time.monotonic()
        self._ahead = self._ahead or self._make_ahead()
        if self._ahead is not None:
            self._ahead.begin(global_steps)
        batch, metrics = self._wrapped.sample(global_steps, partition_id, batch_size)
        seconds = time.monotonic() - started
        ahead = {} if self._ahead is None else self._ahead.end()
        with self._metrics:
            metrics = {**metrics, **self._numbers(global_steps, seconds, ahead)}
        return batch, metrics

    def _make_ahead(self) -> Ahead | None:
        config = self._options.run_ahead_config
        if config is None or not runs_ahead(self._trainer.config):
            return None
        return Ahead(self._trainer, self._options, config)

    def _numbers(self, step: int, seconds: float, ahead: dict[str, float]) -> dict[str, float]:
        if self._servers is None:
            self._servers = Servers.find(timeout=self._options.rpc_seconds)
        numbers = {**self._account.step(self._servers.counters()), **ahead}
        if self._run_log is not None:
            sums, gauges = split(numbers)
            self._run_log.write(step, {**sums, "seconds": seconds}, gauges=gauges)
        return {**numbers, "rolltree/wait_seconds": seconds, "rolltree/rpc_failures": self._servers.failures}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_wrapped"], name)
