"""Run-ahead's hook in a vLLM server of verl: runs in the server's actor, on its event loop.

Watches the server's real requests by standing before its engine's `generate`, so that run-ahead makes way on the spot,
without a message to anybody. Requests without rolltree's mark, and validation, pass through unwatched. The trainer's
side is `ahead`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from rolltree.runahead import RunAheadConfig, RunAheadController
from rolltree.serving.ahead import Prompt
from rolltree.verl.first_turns import FirstTurn
from rolltree.verl.guard import Guard
from rolltree.verl.log import speak_up
from rolltree.verl.marks import REQUEST_KEY
from rolltree.vllm.ahead import RunAheadLLM

ATTRIBUTE = "_rolltree_ahead"
NOT_FOR_AHEAD = ("logprobs", "prompt_logprobs", "max_tokens", "max_new_tokens", "extra_args", "n")
"""verl's sampling parameters that run-ahead requests have of their own, or not at all."""


class ServerAhead:
    """Run-ahead of one server; steps follow one another without a gap, so that no real request goes unseen."""

    def __init__(self, server: Any, config: RunAheadConfig) -> None:
        self.server = server
        self.llm = RunAheadLLM(server.engine, slots=server.config.max_num_seqs, control=RunAheadController(config))
        self.guard = Guard("some of run-ahead in a vLLM server")
        self._generate, server.engine.generate = server.engine.generate, self._watched

    async def next_step(self) -> dict[str, float]:
        """End the step that runs and start another; the sums since the start."""
        with self.guard:
            await self.llm.end()
        gauges = self.llm.control.gauges()
        await self.llm.begin()
        return gauges

    def prompts(self, turns: Sequence[FirstTurn]) -> list[Prompt]:
        """Return what could be asked ahead: as verl's server would ask, with room for an answer."""
        from vllm import SamplingParams

        config, made = self.server.config, []
        for turn in turns:
            limit = min(config.response_length, config.max_model_len - len(turn.token_ids))
            if limit < 1:
                continue
            own = {name: value for name, value in turn.sampling.items() if name not in NOT_FOR_AHEAD}
            version = {"version": turn.version} if turn.version is not None else {}
            sampling = SamplingParams(max_tokens=limit, extra_args={REQUEST_KEY: version}, **own)
            made.append(Prompt(token_ids=turn.token_ids, sampling=sampling, key=turn.key))
        return made

    async def _watched(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncIterator[Any]:
        """Generate as the engine does; what fails in watching does not reach the request."""
        async with (
            self._real(sampling_params, kwargs) as has,
            aclosing(self._generate(prompt, sampling_params, request_id, **kwargs)) as outputs,
        ):
            async for output in outputs:
                with self.guard:
                    if output.outputs:
                        has(len(output.outputs[0].token_ids))
                yield output

    @asynccontextmanager
    async def _real(self, sampling: Any, kwargs: dict[str, Any]) -> AsyncIterator[Callable[[int], None]]:
        """Surround a request that is watched by `RunAheadLLM.real`, any other by nothing."""
        has: Callable[[int], None] = _no_matter
        real = None
        with self.guard:
            options = (sampling.extra_args or {}).get(REQUEST_KEY) or {}
            if "key" in options and "kind" not in options:
                self.llm.lora_request = kwargs.get("lora_request")
                surrounding = self.llm.real(f"user:{options['key']}", sampling.max_tokens)
                has, real = await surrounding.__aenter__(), surrounding
        try:
            yield has
        finally:
            with self.guard:
                if real is not None:
                    await real.__aexit__(None, None, None)


def _no_matter(tokens: int) -> None:
    """Take no note of an output."""


async def install(server: Any, config: RunAheadConfig) -> bool:
    """Stand before the server's engine; its requests are watched from now on.

    Raises:
        InvalidInputError: the engine's scheduling policy is not "priority".
    """
    speak_up()
    if getattr(server, ATTRIBUTE, None) is None:
        ahead = ServerAhead(server, config)
        await ahead.llm.begin()
        setattr(server, ATTRIBUTE, ahead)
    return True


async def announce(server: Any, turns: Sequence[FirstTurn]) -> int:
    """Say what the next step is going to ask this server first; how many of these prompts are cold."""
    ahead: ServerAhead = getattr(server, ATTRIBUTE)
    with ahead.guard:  # where there is a store, trees come back from it meanwhile
        coming = [{"prompt_token_ids": list(turn.token_ids), "key": turn.key} for turn in turns]
        await server.engine.collective_rpc("rolltree", args=("expect", coming))
    return ahead.llm.announce([ahead.prompts(turns)])


async def next_step(server: Any) -> dict[str, float]:
    """End the step: all run-ahead is cancelled when this returns; the sums since the start."""
    ahead: ServerAhead = getattr(server, ATTRIBUTE)
    return await ahead.next_step()
