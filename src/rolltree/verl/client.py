"""A client of verl's LLM servers that marks each request for rolltree. Wraps verl's own, whichever the trainer chose.

Everything but `generate` is the wrapped client's. The wrapped client resends a request after an abort (asynchronous
trainers) with the same sampling parameters, hence with the same mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolltree.serving.conversations import Conversations
from rolltree.verl.first_turns import PROBE, FirstTurn
from rolltree.verl.guard import Guard
from rolltree.verl.marks import CURRENT, REQUEST_KEY, marked

UNMARKED = Guard("a request's mark: it drafts from a tree of its own prompt")


class MarkingClient:
    """Stands in for `LLMServerClient` and its subclasses.

    Args:
        client: verl's.
        draft: False: no request is drafted for.
    """

    def __init__(self, client: Any, *, draft: bool = True) -> None:
        self.__dict__["_client"] = client
        self.__dict__["_draft"] = draft
        self.__dict__["_conversations"] = Conversations()

    async def generate(
        self, request_id: str, *, prompt_ids: Sequence[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Generate as the wrapped client does, with the mark of the running agent loop.

        Raises:
            FirstTurnSeen: the agent loop is only probed for what it would generate first.
        """
        params = sampling_params
        with UNMARKED:
            params = marked(
                sampling_params, CURRENT.get(), session=str(request_id), prompt=prompt_ids,
                conversations=self._conversations, draft=self._draft,
            )  # fmt: skip
        if probe := PROBE.get():
            mark = params["extra_args"][REQUEST_KEY]
            probe.see(FirstTurn(mark["key"], mark.get("version"), [int(t) for t in prompt_ids], params), kwargs)
        return await self._client.generate(request_id, prompt_ids=prompt_ids, sampling_params=params, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_client", "_conversations", "_draft"):  # not there yet while Ray unpickles
            raise AttributeError(name)
        return getattr(self._client, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._client, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
