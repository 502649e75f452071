"""verl's agent loop worker that says of each agent loop what rolltree needs to know, see `marks`.

verl offers the class as a Ray actor. What it decorates is subclassed, and in a module of its own, so that Ray pickles
it by name: pickled by value, verl's `super()` without arguments would no longer find its class.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from rolltree.errors import InvalidInputError
from rolltree.verl.first_turns import PROBE, PROBED_LOOPS, FirstTurn, FirstTurnSeen, Probe
from rolltree.verl.guard import Guard
from rolltree.verl.log import speak_up
from rolltree.verl.marks import CURRENT, Mark, named_key, policy_version
from rolltree.verl.options import WHERE, VerlOptions

_Worker: Any = AgentLoopWorkerTQ.__ray_actor_class__


class MarkingWorker(_Worker):  # type: ignore[misc]
    """Runs agent loops in a context that carries their mark."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        speak_up()
        self.rolltree_options = VerlOptions.of(config)
        super().__init__(config, *args, **kwargs)

    async def _run_agent_loop(self, sampling_params: Any, trajectory: Any, **kwargs: Any) -> Any:
        """Run one agent loop; each runs in a task of its own, so its mark ends with it."""
        CURRENT.set(self._mark(trajectory, kwargs))
        return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)

    async def first_turns(self, batch: Any, timeout: float) -> list[FirstTurn]:
        """Return what the agent loops of a batch would send first; the batch is as for `generate_sequences`.

        Raises:
            TimeoutError: an agent loop did neither generate nor end within `timeout` seconds.
        """
        probe = Probe(len(batch))
        token = PROBE.set(probe)
        try:
            await self.generate_sequences(batch)
        finally:
            PROBE.reset(token)
        await asyncio.wait_for(probe.done.wait(), timeout)
        return probe.turns

    async def _run_prompt(self, prompt: dict[str, Any], sampling_params: Any, trajectory: Any, **kwargs: Any) -> None:
        """Run the agent loops of a prompt; where they are probed, one of them up to its first turn."""
        probe = PROBE.get()
        if probe is None:
            await super()._run_prompt(prompt, sampling_params, trajectory=trajectory, **kwargs)
            return
        row = {name: value for name, value in prompt.items() if name not in ("__rollout_n__", "__do_sample__")}
        try:
            if row["agent_name"] in PROBED_LOOPS and prompt.get("__do_sample__", True):
                with suppress(FirstTurnSeen, Exception):  # a prompt that fails will say so when it is sampled
                    await self._run_agent_loop(dict(sampling_params), trajectory, trace=False, session_id=0, **row)
        finally:
            probe.end()

    async def _agent_loop_postprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Score and store what an agent loop made; nothing of a probed one, even if it never generated."""
        if PROBE.get() is None:
            return await super()._agent_loop_postprocess(*args, **kwargs)
        return None

    def _mark(self, trajectory: Any, row: dict[str, Any]) -> Mark:
        """Return what is known; what is not understood is left out, and said once."""
        version = key = None
        with NO_VERSION:
            version = policy_version(trajectory["step"])
        column = self.rolltree_options.key_column
        if column is not None:
            with NO_KEY:
                key = column_key(row, column)
        return Mark(validation=bool(trajectory["validate"]), version=version, key=key)


NO_VERSION = Guard("the policy's version in requests: trees do not age")
NO_KEY = Guard("sampler_kwargs.key_column: such prompts are named by their token ids")


def column_key(row: dict[str, Any], column: str) -> str | None:
    """Return the prompt's name from a row of the data set.

    Raises:
        InvalidInputError: no such column; the message names those that there are.
    """
    if column not in row:
        raise InvalidInputError(f"{WHERE}.key_column", column, f"a column of the data set: {', '.join(sorted(row))}")
    return named_key(row[column])
