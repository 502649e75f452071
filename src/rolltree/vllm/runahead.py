"""Generates batches through vLLM's `AsyncLLM`, and while a batch thins out, prompts of the next batches.

The batches' side of run-ahead with plain vLLM; `ahead` says how it works and what the engine must be started with. The
first turn only: tools and environments are never run ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.serving.prompts import Prompt, request_name
from rolltree.vllm.ahead import AheadDriver

__all__ = ["Prompt", "RunAheadLLM"]


class RunAheadLLM(AheadDriver):
    """Generates batches, and works ahead in their tails; made as an `AheadDriver` is."""

    async def generate(self, requests: Sequence[Prompt], upcoming: Sequence[Sequence[Prompt]] = ()) -> list[Any]:
        """Run the requests to their end; their last `RequestOutput`s in order, with all tokens.

        `upcoming[i]` are the requests of the i-th call after this. When this returns or raises, no run-ahead request is
        left in the engine.

        Raises:
            InvalidInputError: a request for more than one sample.

        """
        for request in requests:
            if request.sampling.n != 1:
                raise InvalidInputError("sampling.n", request.sampling.n, "1", "Send one request for each sample.")
        expected = 0 if self._tokens else sum(self.useful_tokens(request) for request in requests)
        await self.begin(upcoming, expected_tokens=expected)
        tasks = [asyncio.create_task(self._run_real(request)) for request in requests]
        try:
            outputs = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await self.end(complete=False)
            raise
        await self.end()
        return list(outputs)

    async def _run_real(self, request: Prompt) -> Any:
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling.clone()
        sampling.output_kind = RequestOutputKind.CUMULATIVE
        output = None
        async with self.real(request.identity, request.sampling.max_tokens) as tick:
            prompt = {"prompt_token_ids": list(request.token_ids)}
            async for output in self.engine.generate(prompt, sampling, request_name("real")):
                tick(len(output.outputs[0].token_ids))
        return output
