"""Run-ahead on the trainer's side: sees what the next step will ask, and tells each vLLM server its share.

Decides nothing and submits nothing: `ahead_server` does, where the requests are. While a step generates, the agent
loops of the coming batch are probed for their first turns (`first_turns`), in a thread, so that the trainer waits for
nothing. Calls are bounded in time; what fails costs the run-ahead of a step.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import ray

from rolltree.runahead import RunAheadConfig
from rolltree.verl import ahead_server
from rolltree.verl.first_turns import FirstTurn
from rolltree.verl.loader import attach
from rolltree.verl.options import VerlOptions
from rolltree.verl.servers import Servers

log = logging.getLogger("rolltree.verl")

SUMS = ("launched", "cancelled", "prompts_used", "tokens_used", "saved_seconds", "cost_seconds")
QUIET_STEPS = 8
"""Steps without a look after one that saw no cold prompt: from the second epoch on there are hardly any."""


class Ahead:
    """One training's run-ahead: `begin` when a step's prompts are submitted, `end` when they are sampled.

    Args:
        trainer: verl's synchronous trainer, once it is set up.
        options: `rpc_seconds`.
        config: the controller's settings.
    """

    def __init__(self, trainer: Any, options: VerlOptions, config: RunAheadConfig) -> None:
        self.trainer, self.config, self.timeout = trainer, config, options.rpc_seconds
        manager = trainer.llm_server_manager
        self.names: list[str] = list(manager.server_addresses)
        self.servers = Servers(manager.server_handles, timeout=self.timeout)
        self.failures = 0
        """Looks at coming batches that failed."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rolltree-ahead")
        self._announced: Future[int] | None = None
        self._before: list[Mapping[str, float]] = [{} for _ in self.names]
        self._installed = False
        self._quiet = 0

    def begin(self, step: int) -> None:
        """Look at the next step's prompts; nothing is done in the first step, whose requests nobody watched."""
        self._announced = None
        if not self._installed:
            self._installed = all(self.servers.each(ahead_server.install, [(self.config,)] * len(self.names)))
            return
        self._quiet -= 1
        batch = self._coming(step) if self._quiet < 0 else None
        if batch is not None:
            self._announced = self._pool.submit(self._announce, batch)

    def end(self) -> dict[str, float]:
        """End all run-ahead; the numbers of this step, for the logger."""
        looked, cold = self._announced is not None, self._finish_announcing()
        self._quiet = QUIET_STEPS if looked and not cold else self._quiet
        failures = {"rolltree/run_ahead_failures": float(self.failures + self.servers.failures)}
        if not self._installed:
            return failures
        gauges = self.servers.each(ahead_server.next_step, [()] * len(self.names))
        answered = [(now, before) for now, before in zip(gauges, self._before, strict=True) if now is not None]
        self._before = [now or before for now, before in zip(gauges, self._before, strict=True)]
        numbers = {name: sum(now[name] - then.get(name, 0) for now, then in answered) for name in SUMS}
        numbers["on"] = min((now["on"] for now, _ in answered), default=0.0)
        numbers["cold_prompts"] = cold
        return failures | {f"rolltree/run_ahead_{name}": float(value) for name, value in numbers.items()}

    def _finish_announcing(self) -> int:
        """Wait for a look that is under way: what it announces must be over before the step is ended."""
        if self._announced is None:
            return 0
        try:
            return self._announced.result()
        except Exception as error:  # a time-out, an agent loop's error: a step without run-ahead
            if not self.failures:
                log.warning("Looking ahead failed; counted from now on, logged once: %r", error)
            self.failures += 1
            return 0

    def _coming(self, step: int) -> Any:
        """Return the next step's batch as the trainer will make it, None at the end of an epoch or of the training."""
        from verl.utils import tensordict_utils

        trainer, data = self.trainer, self.trainer.config.data
        if step >= trainer.total_training_steps:
            return None
        size = data.get("gen_batch_size", None) or data.train_batch_size
        chunks = []
        for rows in attach(trainer).peek(data.train_batch_size // size):
            uids = [str(uuid.uuid4()) for _ in rows["raw_prompt"]]
            chunks.append(tensordict_utils.get_tensordict({**rows, "uid": np.array(uids, dtype=object)}))
        if not chunks:
            return None
        batch = chunks[0] if len(chunks) == 1 else tensordict_utils.concat_tensordict(chunks)
        tensordict_utils.assign_non_tensor_data(batch, "global_steps", step)
        return batch

    def _announce(self, batch: Any) -> int:
        """Ask for the first turns and hand each server its own; how many prompts are cold."""
        turns = self.trainer.agent_loop_manager.first_turns(batch, timeout=self.timeout)
        shares = self._shares(turns)
        return sum(found or 0 for found in self.servers.each(ahead_server.announce, [(share,) for share in shares]))

    def _shares(self, turns: Sequence[FirstTurn]) -> list[list[FirstTurn]]:
        if len(self.names) == 1:
            return [list(turns)]
        balancer = self.trainer.llm_server_manager.global_load_balancer
        samples = int(self.trainer.config.actor_rollout_ref.rollout.n)
        homes = ray.get(balancer.foresee.remote([turn.key for turn in turns], samples), timeout=self.timeout)
        return [[t for t, home in zip(turns, homes, strict=True) if home == name] for name in self.names]
