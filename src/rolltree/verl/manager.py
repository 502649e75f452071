"""verl's agent loop manager with marked requests: `agent_loop_manager_class=rolltree.verl.manager.AgentLoopManager`."""

from __future__ import annotations

from typing import Any

import ray
from verl.trainer.ppo.v1 import AgentLoopManagerTQ

from rolltree.errors import InvalidInputError
from rolltree.verl.client import MarkingClient
from rolltree.verl.first_turns import FirstTurn
from rolltree.verl.options import VerlOptions
from rolltree.verl.worker import MarkingWorker


class AgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc, unused-ignore]
    """Hands its workers a client that marks requests, and makes them workers that know what to mark.

    Only rollouts of the policy go through this client: reward models and teachers have clients of their own.
    """

    def __init__(self, config: Any, llm_client: Any, *args: Any, **kwargs: Any) -> None:
        engine = config.actor_rollout_ref.rollout.name
        if engine != "vllm":
            fix = "Or leave out agent_loop_manager_class and custom_sampler."
            raise InvalidInputError("actor_rollout_ref.rollout.name", engine, "'vllm' with rolltree", fix)
        client = MarkingClient(llm_client, draft=VerlOptions.of(config).speculate)
        super().__init__(config, client, *args, **kwargs)
        self.agent_loop_workers_class = ray.remote(MarkingWorker)

    def first_turns(self, prompts: Any, *, timeout: float) -> list[FirstTurn]:
        """Return what the agent loops of a batch would send first, in no particular order; nothing is generated.

        Raises:
            ray.exceptions.GetTimeoutError: the workers took longer than `timeout` seconds.
        """
        chunks = prompts.chunk(len(self.agent_loop_workers))
        calls = [
            w.first_turns.remote(chunk, timeout) for w, chunk in zip(self.agent_loop_workers, chunks, strict=False)
        ]
        return [turn for turns in ray.get(calls, timeout=timeout) for turn in turns]
