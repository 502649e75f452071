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

from rolltree.errors import InvalidInputError
from rolltree.runlog import RunLog
from rolltree.verl.account import Account, split
from rolltree.verl.ahead import Ahead
from rolltree.verl.guard import Guard
from rolltree.verl.lines import SPECULATIVE, drafts_with_rolltree, fill_in, runs_ahead
from rolltree.verl.log import speak_up
from rolltree.verl.options import WHERE, VerlOptions
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
    speak_up()
    trainer = kwargs["refill_fn"].__self__  # the bound method of the trainer that submits prompts
    options = VerlOptions.read(kwargs.get("sampler_kwargs"))
    for line in fill_in(trainer.config, options):
        log.warning("rolltree sets %s (it was not set)", line)
    if options.speculate and not drafts_with_rolltree(trainer.config):
        log.warning("rolltree drafts nothing: %s names another method, or MTP is on for rollouts", SPECULATIVE)
    if options.coupled and not drafts_with_rolltree(trainer.config):
        log.warning("coupled is off: vLLM does not draft with rolltree")
    if options.store and not drafts_with_rolltree(trainer.config):
        log.warning("the store is off: vLLM does not draft with rolltree")
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


def open_run_log(folder: str) -> RunLog:
    """Open the run log, at the start of a training.

    Raises:
        InvalidInputError: the folder cannot be made or written.
    """
    try:
        return RunLog(folder)
    except (OSError, InvalidInputError) as error:
        allowed = "a folder that can be made and written"
        raise InvalidInputError(f"{WHERE}.run_log", folder, allowed, str(error)) from None


class Sampler:
    """verl's sampler with an account of each step. Everything but `sample` is the wrapped one's.

    Only what the wrapped sampler raises leaves `sample`: rolltree's own failures cost the numbers or the run-ahead of a
    step, and are counted as `rolltree/failures`.
    """

    def __init__(self, wrapped: Any, options: VerlOptions, trainer: Any) -> None:
        self._wrapped, self._options, self._trainer = wrapped, options, trainer
        self._ahead: Ahead | None = None
        self._account = Account()
        self._servers: Servers | None = None
        self._run_log = open_run_log(options.run_log) if options.run_log else None
        self._guards = [Guard("run-ahead in this step"), Guard("rolltree's numbers of this step"), Guard("the run log")]
        if options.poll_seconds is not None:
            wrapped.poll_interval = options.poll_seconds

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Wait for a batch as verl does; training batches bring rolltree's numbers along."""
        if partition_id != "train":
            return self._wrapped.sample(global_steps, partition_id, batch_size)  # type: ignore[no-any-return]
        ahead_guard, numbers_guard, log_guard = self._guards
        started = time.monotonic()
        with ahead_guard:
            self._begin_ahead(global_steps)
        batch, metrics = self._wrapped.sample(global_steps, partition_id, batch_size)
        seconds = time.monotonic() - started
        numbers: dict[str, float] = {}
        with ahead_guard:
            numbers |= {} if self._ahead is None else self._ahead.end()
        with numbers_guard:
            numbers |= self._numbers()
        with log_guard:
            self._write(global_steps, seconds, numbers)
        return batch, {**metrics, **numbers, "rolltree/wait_seconds": seconds, **self._failures()}

    def _failures(self) -> dict[str, float]:
        rpc = 0 if self._servers is None else self._servers.failures
        return {"rolltree/failures": sum(g.failures for g in self._guards), "rolltree/rpc_failures": rpc}

    def _begin_ahead(self, step: int) -> None:
        config = self._options.run_ahead_config
        if self._ahead is None and config is not None and runs_ahead(self._trainer.config):
            self._ahead = Ahead(self._trainer, self._options, config)
        if self._ahead is not None:
            self._ahead.begin(step)

    def _numbers(self) -> dict[str, float]:
        if self._servers is None:
            self._servers = Servers.find(timeout=self._options.rpc_seconds)
        return self._account.step(self._servers.counters())

    def _write(self, step: int, seconds: float, numbers: dict[str, float]) -> None:
        if self._run_log is not None:
            sums, gauges = split(numbers)
            self._run_log.write(step, {**sums, "seconds": seconds}, gauges=gauges)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_wrapped"], name)
