"""The proposer that vLLM instantiates in each worker: `rolltree.vllm.Proposer`.

A thin host adapter: `requests` keeps the books, `TreeDrafter` drafts, `compat` is what vLLM does not offer. Runs in the
worker's own thread, between sampling and the next schedule.

Invariants: never raises into the engine (an error costs the step its drafts, is logged once and counted always); no
draft is longer than `num_speculative_tokens` or leaves room for less than one token before `max_model_len`; no id is
outside the vocabulary; the drafts of a step fit into its memory and its token budget. The class has no attribute
`model`: level-2 sleep would look for weights in it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import numpy as np

from rolltree.cache import RolloutCache
from rolltree.drafting import TreeDrafter
from rolltree.serving import control
from rolltree.serving.agreement import Agreement, State, Verdict
from rolltree.serving.figures import Figures
from rolltree.serving.limits import known_only, shorten
from rolltree.serving.load import load_rollouts
from rolltree.serving.requests import Batch, Facts, RequestBook, Work
from rolltree.serving.stops import StopStrings
from rolltree.serving.watch import Watch, pays
from rolltree.step_cost import StepCostObserver
from rolltree.types import DraftBatch
from rolltree.vllm import checks, compat, hooks
from rolltree.vllm.facts import facts_of, read_options, true_output
from rolltree.vllm.metrics import FOLDER, Board
from rolltree.vllm.room import StepRoom
from rolltree.vllm.steptimes import StepTimes

GIVE_UP_AFTER = 16
"""Failed steps in a row after which drafting is paused: the fault will not go away by itself."""


class Proposer:
    """Drafts from the trees of earlier and running rollouts.

    Args:
        vllm_config: vLLM's configuration; options are in its `additional_config` and the environment.

    """

    def __init__(self, vllm_config: Any) -> None:
        self._log = logging.getLogger("vllm.rolltree")  # below vLLM's own logger, so shown as its lines are
        self.options = checks.check_engine(vllm_config)
        self.width = int(vllm_config.speculative_config.num_speculative_tokens)
        self.vocab = int(vllm_config.model_config.get_vocab_size())
        self._max_length = int(vllm_config.model_config.max_model_len)
        self.observer = StepCostObserver() if self.options.cost == "observed" else None
        self._cost = self._learned = self.observer.model if self.observer else self.options.frozen_cost()
        self._figures = Figures()
        self._watch = Watch()
        self._room = StepRoom(vllm_config, vocab=self.vocab, logits_bytes=self.options.logits_bytes)
        self._make()
        self._stops = StopStrings(lambda: compat.tokenizer(vllm_config.model_config))
        self._board = Board(os.environ.get(FOLDER) if self.options.metrics else None)
        self.paused = False
        self.draft_seconds = 0.0
        self.errors = self.invalid_options = self._failed_in_a_row = 0
        self._runner: Any = None
        self._drafts_here: bool | None = None
        self._schedules_alone = compat.schedules_alone(vllm_config)
        self._agreement: Agreement | None = None
        self._failed_now = False
        self._times = StepTimes(self.observer) if self.observer else None
        self._log.info("%s", self._banner())

    def _make(self) -> None:
        options = self.options
        self.drafter = TreeDrafter(RolloutCache(options.cache), options.draft(self.width), cost=self._cost)
        self.book = RequestBook(
            self.drafter.cache, max_draft=self.width, max_length=self._max_length, sessions=options.sessions
        )

    def forget(self) -> None:
        """Start with empty trees; requests that are running start anew in them, sums go on."""
        self._figures.take_over(self.drafter, self.book)
        self._make()

    def resume(self) -> None:
        """Draft again, also where failures had paused it: they are counted anew."""
        self.paused = False
        self._failed_in_a_row = 0

    def commit(self) -> None:
        """Close every session, keeping its text; vLLM tells of finished requests only with the next step."""
        if self._runner is not None:
            self._finish(self._runner, self.book.running)

    def stats(self) -> dict[str, float]:
        """Return sums since the start, and their ratios, under flat names."""
        own = {"errors": self.errors, "invalid_options": self.invalid_options}
        return self._figures.stats(self.drafter, self.book) | own

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """vLLM asks every proposer to load its weights; here it is the rollouts to start from."""
        if self.options.load and self._is_drafting_rank():
            count = load_rollouts(self.drafter.cache, self.options.load)
            self._log.info("rolltree starts with %d rollouts of %s", count, self.options.load)

    def rolltree_begin_step(self, runner: Any, schedule: Any) -> None:
        """Called by the model runner before it takes in a schedule (see `compat`)."""
        began = time.perf_counter()
        try:
            self._begin_step(runner, schedule)
        except Exception:
            self._failed()
        self.draft_seconds += time.perf_counter() - began

    def rolltree_command(self, command: str, *arguments: Any) -> dict[str, Any] | None:
        """Called by the worker for `collective_rpc` (see `control`); None where this rank does not draft."""
        return {"answer": control.run(self, command, *arguments)} if self._is_drafting_rank() else None

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
        began = time.perf_counter()
        try:
            drafts = self._propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
            self._failed_in_a_row = 0
        except Exception:
            self._failed()
            drafts = [[] for _ in sampled_token_ids]
        if self._agreement is not None and not self._agreed(self._agreement, sampled_token_ids, drafts):
            drafts = [[] for _ in sampled_token_ids]
        self.draft_seconds += time.perf_counter() - began
        self._show()
        return drafts

    def _begin_step(self, runner: Any, schedule: Any) -> None:
        self._runner = runner
        if not self._is_drafting_rank():
            return
        self._observe(schedule)
        self._room.begin_step(schedule)
        ended = schedule.finished_req_ids  # a set: its order differs between ranks, and the trees' must not
        self._finish(runner, [id for id in self.book.running if id in ended] if ended else ())
        self.book.restart(new.req_id for new in schedule.scheduled_new_reqs if new.req_id in self.book)

    def _show(self) -> None:
        """Put the counters where the front end reads them."""
        own = {
            "errors": self.errors,
            "invalid_options": self.invalid_options,
            "draft_seconds": self.draft_seconds,
            "paused": self.paused,
        }
        self._board.write(self._figures.cheap(self.drafter, self.book) | own)

    def _finish(self, runner: Any, ids: Iterable[str]) -> None:
        """End requests; the runner forgets them only after this."""
        for id in ids:
            self.book.end(id, true_output(runner.requests.get(id), self._stops))

    def _is_drafting_rank(self) -> bool:
        if self._drafts_here is None:
            self._agreement = compat.agreement() if self._schedules_alone else None
            self._drafts_here = self._schedules_alone or compat.is_output_rank()
        return self._drafts_here

    def _agreed(self, agreement: Agreement, sampled: list[list[int]], drafts: list[list[int]]) -> bool:
        """Return whether all ranks made these drafts; if not, none verifies any. Raises only when ranks are lost."""
        state = State.FAILED if self._failed_now else State.PAUSED if self.paused else State.DRAFTED
        verdict = agreement.compare(state, sampled, drafts, self._learned)
        self.errors += verdict.state == State.FAILED and state != State.FAILED
        self._failed_now = False
        if self.observer is not None:
            self.drafter.cost = self._cost = verdict.cost
        if not verdict.drafts_stand:
            try:
                self._withdraw(verdict)
            except Exception:  # the others hear of it in the next step
                self._failed()
        return verdict.drafts_stand

    def _withdraw(self, verdict: Verdict) -> None:
        """Stay like the other ranks, one of which did not draft, or not the same."""
        self.drafter.draft(np.zeros(0, np.int64), np.zeros(0, np.int32))  # so that none is judged as rejected
        if verdict.state == State.FAILED:
            self._log.warning("rolltree failed on a rank: all ranks start anew, with empty trees.")
            self.forget()
        if verdict.parted and not self.paused:
            self.paused = True
            self.errors += 1
            self._log.error("%s", verdict.complaint)

    def _observe(self, schedule: Any) -> None:
        """Learn from the step before; only the leader does where ranks schedule alone, because clocks differ."""
        if self._times is None or (self._agreement is not None and not self._agreement.leads):
            return
        self._learned = self._times.take(schedule, time.perf_counter())
        if self._agreement is None:
            self.drafter.cost = self._cost = self._learned

    def _propose(self, sampled: list[list[int]], lengths: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
        if self._runner is None:
            raise compat.HookMissing(
                "this vLLM runs another model runner than the one that shows rolltree its schedules"
            )
        ids = self._runner.input_batch.req_ids
        work = self.book.step(Batch(ids[: len(sampled)], sampled, lengths, tokens), self._facts)
        drafts: list[list[int]] = [[] for _ in sampled]
        if not len(work.rows):
            return drafts
        self.drafter.advance(work.handles, work.tokens, work.offsets)
        room = 0 if self.paused else self._room.drafts(len(self._runner.requests), ids, sampled, lengths)
        if room:
            self._place(drafts, self.drafter.draft(work.handles, work.limits), work, room)
        self._look(len(work.rows), len(work.tokens), sum(map(len, drafts)))
        return drafts

    def _place(self, drafts: list[list[int]], batch: DraftBatch, work: Work, room: int) -> None:
        """Fill in the drafts: cut to what the step can take, and before a token that the model does not have."""
        lengths = shorten(
            batch.survival, known_only(batch.tokens, np.minimum(batch.lengths, work.limits), self.vocab), room
        )
        batch.lengths[:] = lengths  # what the drafter counts as verified
        tokens = batch.tokens[:, : int(lengths.max(initial=0))]
        for row, length, text in zip(work.rows.tolist(), lengths.tolist(), tokens.tolist(), strict=True):
            if length:
                drafts[row] = text[:length]

    def _look(self, rows: int, tokens: int, drafted: int) -> None:
        """Say it once when drafting brings nothing any more."""
        if self._watch.add(rows, tokens, drafted):
            pay = pays(self.drafter.cost, self._watch.mean_rows, self.width)
            if line := self._watch.judge(paused=self.paused, pays=pay):
                self._log.warning("rolltree: %s", line)

    def _facts(self, id: str) -> Facts:
        """Read a request; the front end has refused bad options, unless the plugin does not run there."""
        request = self._runner.requests[id]
        options, error = read_options(request.sampling_params)
        if error is not None:
            self.invalid_options += 1
            self._log.warning("A request is not drafted for: %s", error)
        return facts_of(request, options)

    def _failed(self) -> None:
        """Go on without drafts; call inside an `except`."""
        self.errors += 1
        self._failed_now = True
        self._failed_in_a_row += 1
        if self.errors == 1:
            self._log.exception("rolltree failed; this step has no drafts. Logged once, counted always.")
        self.book.drop()
        if self._failed_in_a_row >= GIVE_UP_AFTER and not self.paused:
            self.paused = True
            self._log.error("rolltree failed %d steps in a row and drafts no more; see the error above.", GIVE_UP_AFTER)

    def _banner(self) -> str:
        options = self.options
        return (
            f"rolltree {metadata.version('rolltree')} is ON: up to {self.width} draft tokens a request and step, "
            f"from earlier and running rollouts (window {options.window}, all prompts {options.shared_window}, "
            f"{options.capacity_bytes / 2**30:.3g} GiB), budget: {options.cost}, "
            f"keyed by the whole prompt unless a request names its key. A step's drafts are bounded by "
            f"{self._room}, a request by {self._max_length} tokens."
            + (f" Less works than should: {missing}." if (missing := hooks.shortcomings()) else "")
        )
