"""What an engine drafts from: trees, who has which session in them, the store behind them, what other engines tell.

The base of `ServingCore`, which knows the steps; here is what happens between them, mostly by command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rolltree.budget import CostModel
from rolltree.drafting import TreeDrafter
from rolltree.metrics import add_up
from rolltree.serving import figures
from rolltree.serving.counts import ServingCounts
from rolltree.serving.keeping import Keeping, expect
from rolltree.serving.limits import EngineShape
from rolltree.serving.options import EngineOptions
from rolltree.serving.requests import RequestBook
from rolltree.serving.versions import Source

if TYPE_CHECKING:  # only where ranks schedule for themselves, or engines share
    from rolltree.serving.agreement import Agreement
    from rolltree.sharing.port import Port


class EngineMemory:
    """The trees of one engine; `make` makes them first, when `cost` is set.

    Args:
        engine: what is known of the engine.
        options: what the user set.
        output_of: returns all that a request generated, cut where it ended; None: what was taken in.
        log: where lines for the user go.

    """

    drafter: TreeDrafter
    book: RequestBook
    book_class: type[RequestBook] = RequestBook

    def __init__(
        self, engine: EngineShape, options: EngineOptions, *,
        output_of: Callable[[str], Sequence[int] | None], log: logging.Logger,
    ) -> None:  # fmt: skip
        self.engine, self.options, self.log, self._output_of = engine, options, log, output_of
        self.cost: CostModel | None = None
        """Of a step, as new trees begin with it."""
        self.agreement: Agreement | None = None
        """With the ranks that take part in the same forward passes, where each schedules for itself."""
        self.port: Port | None = None
        """Where other engines are told of this one's rollouts, and theirs come in; once there was a step."""
        self.counts = ServingCounts()
        self.keeping = Keeping(options, vocab=engine.vocab, model=engine.model, log=self.log)
        self._started = False
        self._earlier: dict[str, float] = {}  # counts of caches that were before

    def make(self, source: Source = Source.UPDATES) -> None:
        """Make empty trees."""
        engine, options = self.engine, self.options
        self.drafter = TreeDrafter(self.keeping.cache(), options.draft(engine.max_draft), cost=self.cost)
        self.drafter.stats = self.counts
        self.book = self.book_class(
            self.drafter.cache,
            max_draft=engine.max_draft,
            max_length=engine.max_length,
            sessions=options.sessions,
            counts=self.counts,
            infer=options.infer,
            source=source,
        )
        if self.port is not None:
            self.port.follow(self.drafter.cache)

    def start(self) -> None:
        """Open the store and load the rollouts to start from: in the process that drafts, when it can draft.

        Call it before the first step, whose begin does it otherwise; a second call changes nothing.

        Raises:
            InvalidInputError: what `load` names is no rollouts.

        """
        if self._started:
            return
        self._started, agreement = True, self.agreement
        self.keeping.start(alone=agreement is not None, leads=agreement is None or agreement.leads)
        if self.keeping.store is not None:
            self.make(self.book.versions.source)
        self.counts.store_refused += self.keeping.refused
        if self.options.load:
            self.load()

    def end(self, ids: Iterable[str]) -> None:
        """End these requests, keeping their text."""
        for id in ids:
            self.book.end(id, self._output_of(id))

    def commit(self) -> None:
        """Close every session, keeping its text: many hosts tell of finished requests only with the next step.

        With a store, what was kept is in the file when this returns, unless it cannot be written, which is logged.
        """
        self.end(self.book.running)
        self.keeping.flush()

    def forget(self) -> None:
        """Start with empty trees; requests that are running start anew in them, sums go on.

        A store keeps what it has: prompts that it knows come back when they are asked for.
        """
        self.drafter.count_sources()
        self._earlier = add_up(self._earlier, figures.memory(self.drafter.cache))
        self.make(self.book.versions.source)

    def load(self, path: str = "") -> int:
        """Load rollouts of a store or of JSON lines, `options.load` unless it is named; return how many."""
        from rolltree.serving.load import load_rollouts

        count = load_rollouts(self.drafter.cache, path or self.options.load)
        self.log.info("rolltree has loaded %d rollouts of %s", count, path or self.options.load)
        return count

    def add(self, rollouts: Iterable[Mapping[str, Any]]) -> int:
        """Take in rollouts that other engines finished; return how many. They are not committed to a store here.

        Args:
            rollouts: each in the fields of the trace format: `prompt_token_ids`, `token_ids`, and where there are,
                `key`, `step`, `context`.

        Raises:
            InvalidInputError: one is no rollout, or has a token that the model does not; none was taken in.

        """
        from rolltree.serving.load import add_rollouts

        return add_rollouts(self.drafter.cache, rollouts, vocab=self.engine.vocab)

    def expect(self, prompts: Iterable[Mapping[str, Any]]) -> int:
        """Say which prompts are coming, so that their trees are made again from the store meanwhile; return how many.

        Args:
            prompts: each with `prompt_token_ids` and, where requests name one, `key`.

        Raises:
            InvalidInputError: one is no prompt, or has a token that the model does not; none is expected.

        """
        return expect(self.drafter.cache, prompts, vocab=self.engine.vocab)

    def stats(self) -> dict[str, float]:
        """Return sums since the start and their ratios, and what cache and store hold now, under flat names."""
        cache = self.drafter.cache
        sums = add_up(self._earlier, figures.memory(cache))
        shared = {} if self.port is None else {"shared_age": self.port.courier.age}
        return self.drafter.snapshot().snapshot() | sums | figures.memory(cache, held=True) | shared
