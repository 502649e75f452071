"""The speculator of the V2 runner that waits for a step's tokens in the device's stream, not in Python: option `wait`.

`propose` says what is to be done with the tokens and puts it into the stream: copies to pinned memory, one native call
as a host function, the copy of its drafts back. Python and the scheduler run ahead meanwhile; what came of a step is
learned one or two steps later. So the number of drafts that the next step verifies is chosen before they are made, one
for all rows (`serving.streamed`); places that hold no draft carry the row's last sampled token, verified like others.

Invariants: those of `Speculator` and `StreamedCore`; nothing here waits for the device, but commands do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from rolltree.serving.request import ServedRequest
from rolltree.serving.streamed import Handed, Rows, StreamedCore
from rolltree.vllm import checks, host_function
from rolltree.vllm.request_state import true_output
from rolltree.vllm.speculator import Speculator
from rolltree.vllm.stream_turns import StreamTurns


def speculator(vllm_config: Any, device: Any, states: Any) -> Speculator:
    """Return the speculator that the engine's options ask for; arguments as `Speculator`."""
    waits_in_stream = checks.check_engine(vllm_config).wait == "stream"
    return (StreamSpeculator if waits_in_stream else Speculator)(vllm_config, device, states)


class StreamSpeculator(Speculator):
    """See the module; arguments as `Speculator`."""

    runner = "V2 (drafting waits in the device's stream)"
    core: StreamedCore
    core_class = StreamedCore

    def __init__(self, vllm_config: Any, device: Any, states: Any) -> None:
        super().__init__(vllm_config, device, states)
        engine, stream = self.core.engine, host_function.HostFunctions(device)
        self._turns = StreamTurns(states, device, engine.max_requests, engine.max_draft, stream)
        self.core.use(self._turns.buffers, stream.wait, self._draft_lengths)

    def rolltree_command(self, command: str, *arguments: Any) -> dict[str, Any] | None:
        """Called by the worker, between two steps: what the stream still does comes first."""
        with self.core.guarded():
            self.core.rest()
        return super().rolltree_command(command, *arguments)

    def propose(self, *args: Any, **kwargs: Any) -> Any:
        """Put into the stream what is to be done with this step's tokens; as `Speculator.propose`, without its wait."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        batch, width = given["input_batch"], given.get("num_speculative_tokens")
        rows = int(batch.num_reqs)
        if given.get("dummy_run"):
            return self._turns.tokens[:rows]
        most = self.core.engine.max_draft if width is None else int(width)
        slots = batch.idx_mapping[:rows]
        handed: Handed | None = None
        with self.core.guarded():
            handed = self._launched(batch, given["num_sampled"], slots, most)
        self._places = dict.fromkeys(batch.req_ids, handed.width) if handed is not None and handed.width else {}
        self._show()
        return self._turns.place(None if handed is None else handed.index, given["last_sampled"].view(-1)[slots])

    def _draft_lengths(self, rows: int) -> dict[int, bool]:
        """Return the lengths to choose from: where there are graphs of one length, those that may have one."""
        if self._graphs is None or self._graphs.any_lengths:
            return dict.fromkeys(range(self.core.engine.max_draft + 1), True)
        self._plan.begin(self.core.engine.max_draft, self._graphs)
        return self._plan.choices(rows, rows * self.core.engine.max_draft)

    def _launched(self, batch: Any, num_sampled: Any, slots: Any, most: int) -> Handed | None:
        ids = list(batch.req_ids)
        running = len(self._states.req_id_to_index)
        unread = self._reading.unread(ids, [()] * len(ids), batch.prefill_len_np)
        known = self._requests.keys()
        rows = Rows(
            ids=ids, slots=batch.idx_mapping_np[: len(ids)], known=known, most=most, running=running, unread=unread
        )
        handed = self.core.hand_over(rows, self._rows.text)
        if handed is not None:
            try:
                self._turns.launch(handed.index, handed.entry, num_sampled, slots)
            except Exception:
                self.core.take_back()
                raise
        return handed

    def _request(self, id: str) -> ServedRequest:
        request, sampling = super()._request(id), self._requests[id].new.sampling_params
        if not getattr(sampling, "stop", None):
            return request

        def end_of(output: Sequence[int]) -> Sequence[int]:
            state = SimpleNamespace(output_token_ids=output, sampling_params=sampling)
            return true_output(state, self._stops) or ()

        return replace(request, end_of=end_of)

    def _state(self, id: str) -> Any:
        """Return the request without its text, which the stream may be ahead of."""
        return self._requests.get(id)
