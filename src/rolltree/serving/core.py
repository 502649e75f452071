"""Drafting inside a batching engine, from the begin of a step to its drafts: `ServingCore`, which every host drives.

A host reads its own objects into plain data and calls, in each step, `begin_step`, `take_in` and `draft`; tokens may
come in other calls, and rows in another order, than those for which drafts are asked. It never sees an engine. Which
text belongs to whom is decided in `requests`, what to draft in `TreeDrafter`.

Invariants: nothing raises into the engine that is called inside `guarded` (an error costs the step its drafts, is
logged once and counted always), nor does `draft`, unless ranks that must agree are lost; no draft is longer than
`max_draft` or leaves room for less than one token before the request's end; no id is outside the vocabulary; the drafts
of a step fit into its memory and its token budget.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.serving import figures
from rolltree.serving.batch import Batch, Wanted
from rolltree.serving.effect import Effect
from rolltree.serving.lengths import Drafted, LengthRule
from rolltree.serving.limits import EngineShape, StepLimits, known_only, shorten
from rolltree.serving.memory import EngineMemory
from rolltree.serving.options import EngineOptions
from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import LEFT_ALONE, RequestOptions
from rolltree.serving.timing import Scheduled, StepTimer
from rolltree.step_cost import StepCostObserver
from rolltree.types import DraftBatch, Float32Array, Int32Array

if TYPE_CHECKING:  # only where ranks schedule for themselves
    from rolltree.serving.agreement import Agreement, Verdict

GIVE_UP_AFTER = 16
"""Failed steps in a row after which drafting is paused: the fault will not go away by itself."""
Drafts = list[list[int]]


class ServingCore(EngineMemory):
    """Drafts for the requests of one engine from the trees of earlier and running rollouts.

    Args:
        engine: what is known of the engine.
        options: what the user set.
        request_of: reads a request when its first token comes.
        output_of: returns all that a request generated, cut where it ended; None: what was taken in.
        free_bytes: memory that is free for logits; asked once, for the first drafts. 0: not known.
        log: where lines for the user go.
        clock: seconds.

    """

    def __init__(
        self, engine: EngineShape, options: EngineOptions, *,
        request_of: Callable[[str], ServedRequest],
        output_of: Callable[[str], Sequence[int] | None] = lambda id: None,
        free_bytes: Callable[[], int] = lambda: 0,
        log: logging.Logger | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        super().__init__(engine, options, output_of=output_of, log=log or logging.getLogger("rolltree"))
        self._request_of, self._free_bytes, self._clock = request_of, free_bytes, clock
        self.observer = StepCostObserver() if options.cost == "observed" else None
        self._timer = StepTimer(self.observer) if self.observer else None
        self._observed = self.observer.model if self.observer else options.frozen_cost()
        self._limits: StepLimits | None = None
        self._effect = Effect(self.observer, self.counts, width=engine.max_draft, log=self.log)
        self.paused = self._failed_now = False
        self._failed_in_a_row = 0
        self._sampled: list[Sequence[int]] = []
        self._rows = self._tokens = 0  # taken in since the last draft
        self.cost = self._observed
        self.lengths: LengthRule | None = None
        """Cuts drafts where the host has a say in it; None: the budget does."""
        self.make()

    def close(self) -> None:
        """Keep what requests have generated so far, and let go of the store: when the engine ends."""
        with self.guarded():
            self.commit()
        self.keeping.close()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever fails inside costs this step its drafts, and is counted; so is the time."""
        began = self._clock()
        try:
            yield
        except Exception:
            self._failed()
        finally:
            self.counts.draft_seconds += self._clock() - began

    def begin_step(
        self, step: Scheduled, *, ended: Collection[str] = (), changed: Iterable[str] = (),
        coming: Iterable[tuple[str, ServedRequest]] = (),
    ) -> None:  # fmt: skip
        """Note that the engine begins a step; call it inside `guarded`.

        Args:
            step: its shape.
            ended: requests that are no more, in any order.
            changed: running requests whose prompt is another now.
            coming: requests whose first token will come, where that is known: their trees are made again meanwhile.

        """
        self.start()
        self._observe(step)
        self._effect.begin(step)
        # In our order: a host may hold a set, whose order differs between ranks, and that of the trees must not.
        self.end([id for id in self.book.running if id in ended] if ended else ())
        self.book.restart(id for id in changed if id in self.book)
        if self.options.share:
            from rolltree.serving.share import share

            share(self)
        if self.keeping.gives_back:
            for id, request in coming:
                self.book.expect(id, request)

    def take_in(self, batch: Batch) -> None:
        """Take in what a step sampled; call it inside `guarded`, once or more before the next `draft`."""
        if self.agreement is not None:
            self._sampled.extend(batch.sampled)
        if any(map(len, batch.sampled)):
            self.book.versions.begin_step()
        work = self.book.step(batch, self._request_of)
        if len(work.rows):
            self._rows, self._tokens = self._rows + len(work.rows), self._tokens + len(work.tokens)
            self.drafter.advance(work.handles, work.tokens, work.offsets)

    def verified(self, lengths: Mapping[str, int]) -> None:
        """Say where the engine verified fewer tokens than `draft` gave; call it inside `guarded`, before `take_in`.

        Args:
            lengths: tokens verified of each; requests that are missing had all of theirs verified.

        """
        if lengths:
            counts = np.fromiter(lengths.values(), np.int32, len(lengths))
            self.drafter.verified(self.book.handles(list(lengths)), counts)

    def draft(self, ids: Sequence[str], *, running: int, unread: int = 0) -> Drafts:
        """Draft what comes next for these requests; the next `take_in` judges it.

        Args:
            ids: requests that can verify drafts in the next step.
            running: requests that have begun and are not finished.
            unread: tokens of their prompts that are still to be read.

        Returns:
            Draft tokens of each request, in the order of `ids`.

        Raises:
            RolltreeError: another rank cannot be reached to agree; this must end the engine.

        """
        drafts: Drafts = [[] for _ in ids]
        with self.guarded():
            if not self._failed_now:
                self._draft(drafts, self.book.wanted(ids), running, unread)
                self._failed_in_a_row = 0
        failed, self._failed_now = self._failed_now, False
        sampled, self._sampled, self._rows, self._tokens = self._sampled, [], 0, 0
        stand = self.agreement is None or self._agreed(self.agreement, failed, sampled, [] if failed else drafts)
        return drafts if stand and not failed else [[] for _ in ids]

    def pause(self) -> None:
        """Draft no more; text still enters the trees."""
        self.paused = True

    def resume(self) -> None:
        """Draft again, also where failures had paused it: they are counted anew."""
        self.paused = False
        self._failed_in_a_row = 0

    def cheap_stats(self) -> dict[str, float]:
        """Return sums, and what costs no look at the trees, for every step."""
        self.drafter.count_sources()
        cache = self.drafter.cache
        held = {"cache_prompts": cache.prompts, "cache_bytes": cache.bytes, "sessions": len(self.book)}
        sums = self.counts.sums() | ({} if self.keeping.store is None else figures.store(cache, self._earlier))
        return sums | held | {"paused": self.paused}

    def request_options(self, given: Mapping[str, Any] | None, *, where: str) -> RequestOptions:
        """Read the dictionary that a request carries; one with bad options is left alone, counted and logged."""
        try:
            return RequestOptions.read(given, where=where)
        except InvalidInputError as error:
            self.counts.invalid_options += 1
            self.log.warning("A request is not drafted for: %s", error)
            return LEFT_ALONE

    def banner(self) -> str:
        """Return the line of the start: that drafting is on, from what, and how it is bounded."""
        return figures.banner(self.engine, self.options)

    def _observe(self, step: Scheduled) -> None:
        """Learn from the step before; only the leader does where ranks schedule alone, because clocks differ."""
        if self._timer is None or (self.agreement is not None and not self.agreement.leads):
            return
        self._observed = self._timer.take(step, self._clock())
        if self.agreement is None:
            self.drafter.cost = self.cost = self._observed

    def _draft(self, drafts: Drafts, wanted: Wanted, running: int, unread: int) -> None:
        room = 0 if self.paused else self._room(running, unread)
        if room and len(wanted.rows):
            self._place(drafts, self._drafted(wanted, len(drafts), room), wanted, room)
        if self._rows:
            self._effect.price(self._rows, self._tokens)
            if wanted.limits.any():
                self._watch(self._rows, self._tokens, sum(map(len, drafts)))

    def _watch(self, rows: int, tokens: int, drafted: int) -> None:
        self._effect.watch(rows, tokens, drafted, cost=self.drafter.cost, paused=self.paused)

    def _drafted(self, wanted: Wanted, rows: int, room: int) -> DraftBatch:
        rule = self.lengths
        if rule is None:
            return self.drafter.draft(wanted.handles, wanted.limits)

        def budget(survival: Float32Array, lengths: Int32Array) -> Int32Array:
            cost = self.drafter.cost
            return rule.cut(
                Drafted(survival=survival, lengths=lengths, asked=wanted.rows, rows=rows, room=room, cost=cost)
            )

        return self.drafter.draft(wanted.handles, wanted.limits, budget=budget)

    def _room(self, running: int, unread: int) -> int:
        """Return how many draft tokens the next step can take; the limits are known once the engine has its memory."""
        if self._limits is None:
            self._limits = StepLimits.of(
                requests=self.engine.max_requests,
                tokens=self.engine.step_tokens,
                vocab=self.engine.vocab,
                logits_bytes=self.options.logits_bytes,
                free_bytes=0 if self.options.logits_bytes else self._free_bytes(),
            )
            self.log.info("rolltree: the drafts of a step are cut to %s.", self._limits)
        return self._limits.drafts(running, unread)

    def _place(self, drafts: Drafts, batch: DraftBatch, wanted: Wanted, room: int) -> None:
        """Fill in the drafts: cut to what the step can take, and before a token that the model does not have."""
        lengths = known_only(batch.tokens, np.minimum(batch.lengths, wanted.limits), self.engine.vocab)
        batch.lengths[:] = lengths = shorten(batch.survival, lengths, room)  # what the drafter counts as verified
        tokens = batch.tokens[:, : int(lengths.max(initial=0))]
        for row, length, text in zip(wanted.rows.tolist(), lengths.tolist(), tokens.tolist(), strict=True):
            if length:
                drafts[row] = text[:length]

    def _agreed(self, agreement: Agreement, failed: bool, sampled: Sequence[Sequence[int]], drafts: Drafts) -> bool:
        """Return whether all ranks made these drafts; if not, none verifies any."""
        from rolltree.serving.agreement import State

        state = State.FAILED if failed else State.PAUSED if self.paused else State.DRAFTED
        verdict = agreement.compare(state, sampled, drafts, self._observed)
        self.counts.errors += verdict.state == State.FAILED and not failed
        if self.observer is not None:
            self.drafter.cost = self.cost = verdict.cost
        if not verdict.drafts_stand:
            with self.guarded():  # should this fail, the others learn of it in the next step
                self._withdraw(verdict, verdict.state == State.FAILED)
        return verdict.drafts_stand

    def _withdraw(self, verdict: Verdict, failed: bool) -> None:
        """Stay like the other ranks, one of which did not draft, or not the same."""
        self.drafter.draft(np.zeros(0, np.int64), np.zeros(0, np.int32))  # so that none is judged as rejected
        if failed:
            self.log.warning("rolltree failed on a rank: all ranks start anew, with empty trees.")
            self.forget()
        if verdict.parted and not self.paused:
            self.paused = True
            self.counts.errors += 1
            self.log.error("%s", verdict.complaint)

    def _failed(self) -> None:
        """Go on without drafts; call inside an `except`."""
        self._failed_now = True
        self._count_failure(True)
        self.book.drop()

    def _count_failure(self, error: Exception | bool) -> None:
        """Note that a step has failed, by `error` (True: that which is handled); too many in a row pause drafting."""
        self.counts.errors += 1
        self._failed_in_a_row += 1
        if self.counts.errors == 1:
            self.log.error("rolltree failed; this step has no drafts. Logged once, counted always.", exc_info=error)
        if self._failed_in_a_row >= GIVE_UP_AFTER and not self.paused:
            self.paused = True
            self.log.error("rolltree failed %d steps in a row and drafts no more; see the error above.", GIVE_UP_AFTER)
