"""What the adapters of vLLM's two model runners share: the serving core of one worker, its counters and its commands.

Not an adapter itself: `Proposer` is the V1 runner's, `Speculator` the V2 runner's. Each tells where a request's state
is found (`_state`), and whether this worker drafts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rolltree.errors import InvalidInputError
from rolltree.serving import commands
from rolltree.serving.core import ServingCore
from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import RequestOptions
from rolltree.vllm import checks, compat, compat_args, compat_ranks, hooks
from rolltree.vllm.board import FOLDER, Board
from rolltree.vllm.request_state import request_of, true_output
from rolltree.vllm.schedule import Reading, engine_shape
from rolltree.vllm.seeds import RequestSeeds, origin_of

if TYPE_CHECKING:
    from rolltree.serving.stops import StopStrings


class DraftingWorker:
    """One worker of an engine that drafts with rolltree.

    Args:
        vllm_config: vLLM's configuration; options are in its `additional_config` and the environment.
        runner: which model runner it is, for the line of the start.

    """

    core_class: type[ServingCore] = ServingCore

    def __init__(self, vllm_config: Any, *, runner: str) -> None:
        log = logging.getLogger("vllm.rolltree")  # below vLLM's own logger, so shown as its lines are
        options = checks.check_engine(vllm_config, log)
        self._config = vllm_config
        self.core = self.core_class(
            engine_shape(vllm_config),
            options,
            request_of=self._request,
            output_of=lambda id: true_output(self._state(id), self._stops),
            free_bytes=self._free_bytes,
            log=log,
            clock=time.perf_counter,
        )
        self._schedules_alone = compat_ranks.schedules_alone(vllm_config)
        self.seeds = RequestSeeds(
            origin_of(vllm_config, options.replica), alone=self._schedules_alone, infer=options.infer,
            counts=self.core.counts,
        )  # fmt: skip
        self._board = Board(os.environ.get(FOLDER) if options.metrics else None)
        self._reading = Reading()
        self._stop_strings: StopStrings | None = None
        self._drafts: bool | None = None
        if warning := hooks.never_run():
            self.core.log.warning("%s", warning)
        missing, switch = hooks.shortcomings(), compat_args.origin(vllm_config)
        way = "async" if getattr(vllm_config.scheduler_config, "async_scheduling", False) else "sync"
        self.core.log.info(
            "%s%s Model runner %s, %s scheduling.%s%s",
            self.core.banner(), f" The environment turned it on: {switch}." if switch else "", runner, way,
            f" Sampling is coupled; a request without a seed gets one of {self.seeds}." if options.coupled else "",
            f" Less works than should: {missing}." if missing else "",
        )  # fmt: skip

    def rolltree_command(self, command: str, *arguments: Any) -> dict[str, Any] | None:
        """Called by the worker for `collective_rpc` (see `control`); None where this rank does not draft."""
        self.seeds.told(command, *arguments)
        return {"answer": commands.run(self.core, command, *arguments)} if self._is_drafting_rank() else None

    def _state(self, id: str) -> Any:
        """Return vLLM's state of a request, None where it has forgotten it."""
        raise NotImplementedError

    def _is_drafting_rank(self) -> bool:
        raise NotImplementedError

    def rolltree_close(self) -> None:
        """Called before the worker ends (see `compat`): what was generated is kept."""
        if self._drafts:
            self.core.close()

    def _load(self) -> None:
        """Open the store and load the rollouts to start from."""
        if (self.core.options.load or self.core.options.store) and self._is_drafting_rank():
            self.core.start()

    def _coming(self, schedule: Any) -> Iterator[tuple[str, ServedRequest]]:
        """Requests that are scheduled for the first time, whose first token comes when their prompts are read."""
        for new in schedule.scheduled_new_reqs:
            with suppress(InvalidInputError):  # counted when the request has begun
                options = RequestOptions.read(getattr(new.sampling_params, "extra_args", None), where="extra_args")
                yield new.req_id, request_of(new, options)

    def _request(self, id: str) -> ServedRequest:
        """Read a request; the front end has refused bad options, unless the plugin does not run there."""
        state = self._state(id)
        sampling = state.sampling_params
        given = getattr(sampling, "extra_args", None)
        request = request_of(state, self.core.request_options(given, where="extra_args"))
        if not (self.core.options.coupled and sampling.temperature):
            return request
        return replace(request, noise_seed=self.seeds.of(id, sampling))

    def _show(self) -> None:
        """Show the counters. What fails in that is counted like the rest: raised, it would leave other ranks behind."""
        with self.core.guarded():
            self._board.write(self.core.cheap_stats())

    def _stops(self) -> StopStrings:
        if self._stop_strings is None:
            from rolltree.serving.stops import StopStrings

            self._stop_strings = StopStrings(lambda: compat.tokenizer(self._config.model_config))
        return self._stop_strings

    def _free_bytes(self) -> int:
        """With several processes for one model the number is the same in each of them: none is measured there."""
        is_alone = self._config.parallel_config.world_size == 1
        return compat.free_bytes(share=None if is_alone else float(self._config.cache_config.gpu_memory_utilization))


def asked_rows(ids: Sequence[str], sampled: Sequence[Sequence[int]]) -> list[str]:
    """Return the requests that got tokens, which can verify drafts in the next step."""
    return [id for id, new in zip(ids, sampled, strict=True) if new]
