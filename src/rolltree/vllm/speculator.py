"""The speculator that vLLM's V2 model runner gets for `rolltree.vllm.Proposer`: drafts from rolltree's trees.

Reads the runner's arrays and schedules into plain data for `ServingCore`, and writes drafts where the runner looks for
them. `propose` comes when the tokens of this step are in the runner's arrays, with async scheduling, too: that makes
the scheduler one step late, not the worker.

Rule for ranks: all ranks of a forward pass verify the same drafts. The first of a tensor-parallel group drafts; what it
has, drafts and their lengths, goes to the others in each step (`step_drafts`).

Invariants: those of `ServingCore`; places that hold no draft carry the row's last sampled token (-1 would reach the
embedding); a row that got no token gets no draft; the scheduler's own schedule is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rolltree.serving import commands
from rolltree.serving.batch import Batch
from rolltree.types import Int64Array
from rolltree.vllm import compat_graphs, compat_ranks, compat_v2
from rolltree.vllm.adaptive import Confidences, is_adaptive
from rolltree.vllm.device_rows import DeviceRows
from rolltree.vllm.draft_lengths import RAGGED, DraftLengths, Graphs
from rolltree.vllm.schedule import scheduled
from rolltree.vllm.seeds import seeded
from rolltree.vllm.step_drafts import StepDrafts
from rolltree.vllm.worker import DraftingWorker, asked_rows


@dataclass(slots=True)
class _Running:
    """A request as the V1 runner would show it; `new` is vLLM's `NewRequestData` of its first schedule."""

    new: Any
    output_token_ids: Sequence[int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.new, name)


def _warms_up(schedule: Any) -> bool:
    """Whether vLLM runs a step for its kernels to be made, those that verify drafts among them: it is left whole."""
    ids = schedule.num_scheduled_tokens
    return bool(ids) and all(id.startswith("_warmup_") for id in ids)


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
        self._length = RAGGED  # of all rows of that step
        sizes = compat_graphs.draft_sizes(vllm_config)
        self._plan = DraftLengths(self.core.options.lengths, sizes, widest=engine.max_draft)
        self._graphs: Graphs | None = None
        self.enable_adaptive_verification = is_adaptive(vllm_config)
        shape = (engine.max_requests, engine.max_draft)
        self.draft_token_confidence_probs = torch.zeros(shape, dtype=torch.float32, device=device)
        self._confidences = Confidences() if self.enable_adaptive_verification else None
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

    def rolltree_begin_step(self, schedule: Any, runner: Any = None) -> Any:
        """Called before the runner takes in a schedule; return the one it shall take, with what it verifies alone."""
        places, length, self._places, self._length = self._places, self._length, {}, RAGGED
        if _warms_up(schedule):
            return schedule
        whole = self._confidences is not None
        short = self._plan.whole(schedule, places) if whole else self._plan.shortened(schedule, places, length)
        with self.core.guarded():
            if self._is_drafting_rank():
                self._graphs = compat_graphs.graphs_of(runner)
                self._begin(short)
        if not self.rolltree_coupled:
            return short
        self.seeds.begin_step(schedule)
        return seeded(short, self.seeds)

    def _begin(self, schedule: Any) -> None:
        step = scheduled(schedule)
        if self._graphs is not None and step.rows:
            step = replace(step, ungraphed=self._graphs.left_by(step))
        self._reading.begin_step(schedule, decodes=step.decodes)
        ended = schedule.finished_req_ids
        known, changed = self._requests, []
        for new in schedule.scheduled_new_reqs:  # a preempted one comes back with its id and a longer text to read
            before = known.get(new.req_id)
            if before is not None and before.new.prompt_token_ids != new.prompt_token_ids:
                changed.append(new.req_id)
        try:
            self.core.begin_step(step, ended=ended, changed=changed, coming=self._coming(schedule))
        finally:  # vLLM says it once
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
        drafts = self._shared(batch, given, rows)
        ids = list(batch.req_ids)
        self._places = {id: n for id, n in zip(ids, drafts.counts.tolist(), strict=False) if n}
        self._length = drafts.length
        return self._placed(drafts, given["last_sampled"].view(-1)[batch.idx_mapping[:rows]])

    def _shared(self, batch: Any, given: dict[str, Any], rows: int) -> StepDrafts:
        """Return the drafts of each row, the same on all ranks."""
        width = self.core.engine.max_draft
        drafts = StepDrafts(rows, width, confidences=self._confidences is not None)
        if self._is_drafting_rank():
            places = given.get("num_speculative_tokens")
            self._plan.begin(width if places is None else places, self._graphs)
            self.core.lengths = self._confidences or (self._plan if self._plan.decides else None)
            made = self._drafted(batch, given, rows)
            drafts.length = self._plan.length
            for row, tokens in enumerate(made):
                drafts.counts[row] = len(tokens)
                drafts.tokens[row, : len(tokens)] = tokens
            if self._confidences is not None:
                self._confidences.write(drafts)
        if self._share is not None:
            drafts.array = self._share(drafts.array)
        return drafts

    def _drafted(self, batch: Any, given: dict[str, Any], rows: int) -> list[list[int]]:
        sampled: list[range] = [range(0)] * rows
        asked, unread = list[str](), 0
        with self.core.guarded():
            ids, slots = list(batch.req_ids), batch.idx_mapping_np[:rows].astype(np.int64)
            rejected = given["num_rejected"] if self._confidences is not None else None
            counts, lengths, rejected = self._rows.read(given["num_sampled"], batch.idx_mapping, rows, rejected)
            self._lengths[slots] = lengths
            sampled = [
                range(n) if id in self._requests else range(0) for id, n in zip(ids, counts.tolist(), strict=True)
            ]
            asked = asked_rows(ids, sampled)
            self._judge(ids, counts, rejected)
            self.core.take_in(Batch(ids, sampled, lengths, self._rows.text, slots))
            unread = self._reading.unread(ids, sampled, lengths)
            if self._confidences is not None:
                self._confidences.begin([row for row, new in enumerate(sampled) if new])
        drafts = iter(self.core.draft(asked, running=len(self._states.req_id_to_index), unread=unread))
        self._show()
        return [next(drafts, []) if new else [] for new in sampled]

    def _judge(self, ids: list[str], counts: Int64Array, rejected: Int64Array) -> None:
        """Count fillers, and tell the core which drafts were verified in part only."""
        verified = self._plan.verified
        if self._confidences is not None:
            verified = verified.measured(ids, (counts + rejected - 1).tolist())
        self.core.verified(verified.fewer())
        if verified.fills:
            filled, accepted = verified.fillers(dict(zip(ids, counts.tolist(), strict=True)))
            self.core.counts.fillers += filled
            self.core.counts.fillers_accepted += accepted

    def _placed(self, drafts: StepDrafts, last: Any) -> Any:
        import torch

        rows, width = len(drafts.counts), self.core.engine.max_draft
        self._host[:rows].copy_(torch.from_numpy(drafts.tokens))
        out = self._tokens[:rows]
        out.copy_(self._host[:rows])  # waits: the next step writes there again
        counts = torch.from_numpy(drafts.counts.copy()).to(out.device)
        if self._confidences is not None:
            self.draft_token_confidence_probs[:rows].copy_(torch.from_numpy(drafts.confidences))
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
