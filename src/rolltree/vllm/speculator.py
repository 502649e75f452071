"""The speculator that vLLM's V2 model runner gets for `rolltree.vllm.Proposer`: drafts from rolltree's trees.

Reads the runner's arrays and schedules into plain data for `ServingCore`, and writes drafts where the runner looks for
them. `propose` comes when the tokens of this step are in the runner's arrays, with async scheduling, too: that makes
the scheduler one step late, not the worker.

Rule for ranks: all ranks of a forward pass verify the same drafts. The first of a tensor-parallel group drafts; what it
has, drafts and their lengths, goes to the others in each step.

Invariants: those of `ServingCore`; places that hold no draft carry the row's last sampled token (-1 would reach the
embedding); a row that got no token gets no draft; the scheduler's own schedule is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rolltree.serving import commands
from rolltree.serving.batch import Batch
from rolltree.types import Int32Array
from rolltree.vllm import compat_ranks, compat_v2
from rolltree.vllm.device_rows import DeviceRows
from rolltree.vllm.ragged import shortened
from rolltree.vllm.schedule import scheduled
from rolltree.vllm.seeds import seeded
from rolltree.vllm.worker import DraftingWorker, asked_rows


@dataclass(slots=True)
class _Running:
    """A request as the V1 runner would show it; `new` is vLLM's `NewRequestData` of its first schedule."""

    new: Any
    output_token_ids: Sequence[int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.new, name)


class Speculator(DraftingWorker):
    """One worker's side; the runner makes it (see `compat_v2`).

    Args:
        vllm_config: vLLM's configuration.
        device: where the runner works.
        states: the runner's `RequestState`.

    """

    runner = "V2"
    supports_mm_inputs = False
    draft_logits = None
    """Drafts are certain: there is no distribution that they came from."""
    num_query_per_req = 1
    num_extra_query_per_req = 0

    def __init__(self, vllm_config: Any, device: Any, states: Any) -> None:
        import torch

        super().__init__(vllm_config, runner=self.runner)
        engine, pinned = self.core.engine, device.type == "cuda"
        self.rolltree_coupled = self.core.options.coupled
        self._states, self._requests = states, dict[str, _Running]()
        self._rows = DeviceRows(states, device, engine.max_requests)
        self._tokens = torch.zeros(engine.max_requests, engine.max_draft, dtype=torch.int64, device=device)
        self._host = torch.zeros(engine.max_requests, engine.max_draft, dtype=torch.int64, pin_memory=pinned)
        self._lengths = np.zeros(engine.max_requests, np.int64)  # of each slot, prompt and output
        self._places: dict[str, int] = {}  # draft tokens of each request for its next step
        self._names = compat_v2.propose_parameters()
        self._share = compat_v2.share_of_first()

    def rolltree_command(self, command: str, *arguments: Any) -> dict[str, Any] | None:
        """Called by the worker; a rank that schedules for itself answers its own caller, though another one drafts."""
        if self._schedules_alone and not self._is_drafting_rank():
            return {"answer": commands.run(self.core, command, *arguments)}
        return super().rolltree_command(command, *arguments)

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """vLLM calls it when the engine has its memory; nothing runs on the device here, so the store is opened."""
        self._load()

    def capture(self) -> None:
        """Nothing to capture."""

    def rolltree_begin_step(self, schedule: Any) -> Any:
        """Called before the runner takes in a schedule; return the one it shall take, with places for drafts alone."""
        places, self._places = self._places, {}
        short = shortened(schedule, places)
        with self.core.guarded():
            if self._is_drafting_rank():
                self._begin(short)
        if not self.rolltree_coupled:
            return short
        self.seeds.forget(schedule.finished_req_ids)
        return seeded(short, self.seeds)

    def _begin(self, schedule: Any) -> None:
        step = scheduled(schedule)
        self._reading.begin_step(schedule, decodes=step.decodes)
        ended = schedule.finished_req_ids
        known, changed = self._requests, []
        for new in schedule.scheduled_new_reqs:  # a preempted one comes back with its id and a longer text to read
            before = known.get(new.req_id)
            if before is not None and before.new.prompt_token_ids != new.prompt_token_ids:
                changed.append(new.req_id)
        self.core.begin_step(step, ended=ended, changed=changed, coming=self._coming(schedule))
        for id in ended:
            known.pop(id, None)
        for new in schedule.scheduled_new_reqs:
            if new.req_id not in known or new.req_id in changed:
                known[new.req_id] = _Running(new)

    def propose(self, *args: Any, **kwargs: Any) -> Any:
        """Take in what this step sampled and draft what comes next; arguments as of vLLM's `BaseSpeculator.propose`.

        Returns:
            int64 [rows, K] on the device: the drafts, and the last sampled token where there is none.

        """
        given = dict(zip(self._names, args, strict=False)) | kwargs
        batch = given["input_batch"]
        rows = int(batch.num_reqs)
        if given.get("dummy_run"):
            return self._tokens[:rows]
        width = given.get("num_speculative_tokens")
        packed = self._packed(batch, given["num_sampled"], rows, self.core.engine.max_draft if width is None else width)
        ids = list(batch.req_ids)
        self._places = {id: n for id, n in zip(ids, packed[:, 0].tolist(), strict=False) if n}
        return self._placed(packed, given["last_sampled"].view(-1)[batch.idx_mapping[:rows]])

    def _packed(self, batch: Any, num_sampled: Any, rows: int, width: int) -> Int32Array:
        """Return each row's number of drafts and the drafts, int32 [rows, 1 + K], the same on all ranks."""
        packed = np.zeros((rows, 1 + self.core.engine.max_draft), np.int32)
        if self._is_drafting_rank():
            for row, tokens in enumerate(self._drafted(batch, num_sampled, rows)):
                packed[row, 0] = min(len(tokens), width)
                packed[row, 1 : 1 + len(tokens)] = tokens
        return packed if self._share is None else self._share(packed)

    def _drafted(self, batch: Any, num_sampled: Any, rows: int) -> list[list[int]]:
        sampled: list[range] = [range(0)] * rows
        asked, unread = list[str](), 0
        with self.core.guarded():
            ids, slots = list(batch.req_ids), batch.idx_mapping_np[:rows].astype(np.int64)
            counts, lengths = self._rows.read(num_sampled, batch.idx_mapping, rows)
            self._lengths[slots] = lengths
            sampled = [
                range(n) if id in self._requests else range(0) for id, n in zip(ids, counts.tolist(), strict=True)
            ]
            asked = asked_rows(ids, sampled)
            self.core.take_in(Batch(ids, sampled, lengths, self._rows.text, slots))
            unread = self._reading.unread(ids, sampled, lengths)
        drafts = iter(self.core.draft(asked, running=len(self._states.req_id_to_index), unread=unread))
        self._board.write(self.core.cheap_stats())
        return [next(drafts, []) if new else [] for new in sampled]

    def _placed(self, packed: Int32Array, last: Any) -> Any:
        import torch

        rows, width = packed.shape[0], self.core.engine.max_draft
        self._host[:rows].copy_(torch.from_numpy(packed[:, 1:]))
        out = self._tokens[:rows]
        out.copy_(self._host[:rows])  # waits: the next step writes there again
        counts = torch.from_numpy(packed[:, 0].copy()).to(out.device)
        empty = torch.arange(width, device=out.device)[None, :] >= counts[:, None]
        return torch.where(empty, last[:, None].to(out.dtype), out)

    def _state(self, id: str) -> Any:
        """Return the request with its text so far; without it where the runner has given its slot away."""
        slot, state = self._states.req_id_to_index.get(id), self._requests.get(id)
        if slot is not None and state is not None and state.new.prompt_token_ids is not None:
            text = self._rows.text[slot, len(state.new.prompt_token_ids) : self._lengths[slot]]
            state.output_token_ids = text.tolist()
        return state

    def _is_drafting_rank(self) -> bool:
        if self._drafts is None:
            self._drafts = compat_ranks.is_output_rank()
        return self._drafts
