"""The proposer that vLLM instantiates in each worker: `rolltree.vllm.Proposer`.

Reads vLLM's objects into plain data for `ServingCore`, which does the work; `compat` is what vLLM does not offer. Runs
in the worker's own thread, between sampling and the next schedule.

Invariants: those of `ServingCore`; an error in here, too, costs the step its drafts and nothing else. The class has no
attribute `model`: level-2 sleep would look for weights in it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from rolltree.serving import commands
from rolltree.serving.core import ServingCore
from rolltree.serving.request import Request
from rolltree.serving.requests import Batch
from rolltree.serving.stops import StopStrings
from rolltree.vllm import checks, compat, hooks
from rolltree.vllm.board import FOLDER, Board
from rolltree.vllm.request_state import request_of, true_output
from rolltree.vllm.schedule import Reading, engine_shape, scheduled


class Proposer:
    """Drafts from the trees of earlier and running rollouts.

    Args:
        vllm_config: vLLM's configuration; options are in its `additional_config` and the environment.

    """

    def __init__(self, vllm_config: Any) -> None:
        options = checks.check_engine(vllm_config)
        self._config = vllm_config
        self.core = ServingCore(
            engine_shape(vllm_config),
            options,
            request_of=self._request,
            output_of=self._output,
            free_bytes=self._free_bytes,
            log=logging.getLogger("vllm.rolltree"),  # below vLLM's own logger, so shown as its lines are
            clock=time.perf_counter,
        )
        self._stops = StopStrings(lambda: compat.tokenizer(vllm_config.model_config))
        self._board = Board(os.environ.get(FOLDER) if options.metrics else None)
        self._reading = Reading()
        self._runner: Any = None
        self._drafts_here: bool | None = None
        self._schedules_alone = compat.schedules_alone(vllm_config)
        missing = hooks.shortcomings()
        self.core.log.info("%s", self.core.banner() + (f" Less works than should: {missing}." if missing else ""))

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """vLLM asks every proposer to load its weights; here it is the rollouts to start from."""
        if self.core.options.load and self._is_drafting_rank():
            self.core.load()

    def rolltree_begin_step(self, runner: Any, schedule: Any) -> None:
        """Called by the model runner before it takes in a schedule (see `compat`); it forgets what ended after this."""
        with self.core.guarded():
            self._runner = runner
            if self._is_drafting_rank():
                step = scheduled(schedule)
                self._reading.begin_step(schedule, decodes=step.decodes)
                new = (request.req_id for request in schedule.scheduled_new_reqs)
                self.core.begin_step(step, ended=schedule.finished_req_ids, changed=new)

    def rolltree_command(self, command: str, *arguments: Any) -> dict[str, Any] | None:
        """Called by the worker for `collective_rpc` (see `control`); None where this rank does not draft."""
        return {"answer": commands.run(self.core, command, *arguments)} if self._is_drafting_rank() else None

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
        if self._runner is not None and not self._drafts_here:
            return [[] for _ in sampled_token_ids]
        asked, running, unread = list[str](), 0, 0
        with self.core.guarded():
            ids, running = self._ids()[: len(sampled_token_ids)], len(self._runner.requests)
            asked = [id for id, new in zip(ids, sampled_token_ids, strict=True) if new]
            self.core.take_in(Batch(ids, sampled_token_ids, num_tokens_no_spec, token_ids_cpu))
            unread = self._reading.unread(ids, sampled_token_ids, num_tokens_no_spec)
        drafts = iter(self.core.draft(asked, running=running, unread=unread))
        self._board.write(self.core.cheap_stats())
        return [next(drafts, []) if new else [] for new in sampled_token_ids]

    def _ids(self) -> list[str]:
        if self._runner is None:
            raise compat.HookMissing(
                "this vLLM runs another model runner than the one that shows rolltree its schedules"
            )
        ids: list[str] = self._runner.input_batch.req_ids
        return ids

    def _request(self, id: str) -> Request:
        """Read a request; the front end has refused bad options, unless the plugin does not run there."""
        state = self._runner.requests[id]
        given = getattr(state.sampling_params, "extra_args", None)
        return request_of(state, self.core.request_options(given, where="extra_args"))

    def _output(self, id: str) -> Sequence[int] | None:
        return None if self._runner is None else true_output(self._runner.requests.get(id), self._stops)

    def _free_bytes(self) -> int:
        """With several processes for one model the number is the same in each of them: none is measured there."""
        is_alone = self._config.parallel_config.world_size == 1
        return compat.free_bytes(share=None if is_alone else float(self._config.cache_config.gpu_memory_utilization))

    def _is_drafting_rank(self) -> bool:
        if self._drafts_here is None:
            self.core.agreement = compat.agreement() if self._schedules_alone else None
            self._drafts_here = self._schedules_alone or compat.is_output_rank()
        return self._drafts_here
