"""The proposer that vLLM's V1 model runner gets in each worker: `rolltree.vllm.Proposer`.

Reads vLLM's objects into plain data for `ServingCore`, which does the work; `compat` is what vLLM does not offer. Runs
in the worker's own thread, between sampling and the next schedule.

Invariants: those of `ServingCore`; an error in here, too, costs the step its drafts and nothing else. The class has no
attribute `model`: level-2 sleep would look for weights in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rolltree.serving.batch import Batch
from rolltree.serving.request import ServedRequest
from rolltree.vllm import compat, compat_ranks
from rolltree.vllm.schedule import scheduled
from rolltree.vllm.worker import DraftingWorker, asked_rows

if TYPE_CHECKING:
    from rolltree.vllm.coupled_v1 import Draws


class Proposer(DraftingWorker):
    """Drafts from the trees of earlier and running rollouts.

    Args:
        vllm_config: vLLM's configuration; options are in its `additional_config` and the environment.

    """

    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config, runner="V1")
        self._runner: Any = None
        self._counts: Mapping[str, int] = {}  # tokens of each request in the step that runs

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """vLLM asks every proposer to load its weights; here it is the rollouts to start from."""
        self._load()

    def rolltree_begin_step(self, runner: Any, schedule: Any) -> None:
        """Called by the model runner before it takes in a schedule (see `compat`); it forgets what ended after this."""
        self._runner, self._counts = runner, schedule.num_scheduled_tokens
        if self.core.options.coupled:
            self.seeds.begin_step(schedule)
        with self.core.guarded():
            if self._is_drafting_rank():
                step = scheduled(schedule)
                self._reading.begin_step(schedule, decodes=step.decodes)
                new = (request.req_id for request in schedule.scheduled_new_reqs)
                coming = self._coming(schedule)
                self.core.begin_step(step, ended=schedule.finished_req_ids, changed=new, coming=coming)

    def rolltree_draws(self) -> Draws | None:
        """Called by the model runner of every rank before it samples (see `compat_v1`); None: vLLM draws as it does.

        Raises:
            Exception: seeds or positions are not known; to draw without them would be wrong in silence.

        """
        if not self.core.options.coupled:
            return None
        from rolltree.vllm.coupled_v1 import Draws

        ids, requests = self._ids(), self._runner.requests
        seeds = np.array([self.seeds.of(id, requests[id].sampling_params) for id in ids], np.int64)
        counts = np.array([self._counts[id] for id in ids], np.int64)
        return Draws(seeds, self._runner.input_batch.num_computed_tokens_cpu[: len(ids)] + counts - 1)

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: np.ndarray,
        token_ids_cpu: np.ndarray,
        *_: Any,
        **__: Any,
    ) -> list[list[int]]:
        """Take in what this step sampled and draft what comes next.

        Args:
            sampled_token_ids: tokens of each row in this step, none while its prompt is being read.
            num_tokens_no_spec: length of each row, prompt and output.
            token_ids_cpu: text of each row, shape [rows, max_model_len].
            _: whatever else this vLLM hands to a proposer.
            __: likewise.

        Returns:
            Draft tokens of each row.

        """
        if self._runner is not None and not self._drafts:
            return [[] for _ in sampled_token_ids]
        asked, running, unread = list[str](), 0, 0
        with self.core.guarded():
            ids, running = self._ids()[: len(sampled_token_ids)], len(self._runner.requests)
            asked = asked_rows(ids, sampled_token_ids)
            self.core.take_in(Batch(ids, sampled_token_ids, num_tokens_no_spec, token_ids_cpu))
            unread = self._reading.unread(ids, sampled_token_ids, num_tokens_no_spec)
        drafts = self.core.draft(asked, running=running, unread=unread)
        self._show()
        if len(drafts) == len(sampled_token_ids):
            return drafts
        made = iter(drafts)
        return [next(made, []) if new else [] for new in sampled_token_ids]

    def _request(self, id: str) -> ServedRequest:
        """Drafts end before `min_tokens`: V1 masks stop tokens behind the drafts by the length before the step."""
        request = super()._request(id)
        return replace(request, undrafted_at=request.min_tokens)

    def _ids(self) -> list[str]:
        if self._runner is None:
            raise compat.HookMissing(
                "this vLLM runs another model runner than the one that shows rolltree its schedules"
            )
        ids: list[str] = self._runner.input_batch.req_ids
        return ids

    def _state(self, id: str) -> Any:
        return None if self._runner is None else self._runner.requests.get(id)

    def _is_drafting_rank(self) -> bool:
        if self._drafts is None:
            self.core.agreement = compat_ranks.agreement() if self._schedules_alone else None
            self._drafts = self._schedules_alone or compat_ranks.is_output_rank()
        return self._drafts
