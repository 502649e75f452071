"""A serving core whose steps are done in a device's stream, by one native call each, while the engine runs ahead.

The host says before a step's tokens are there what is to be done with them (`hand_over`), launches the native call, and
learns what came of it when it is done (`poll`), a step or two later; it never waits. Drafts do not pass through here.
How many of each row the next step verifies must be known before they are made: it is one number for all rows, by what
the drafts of the last step that is done promised.

Invariants: those of `ServingCore`; nothing is closed, emptied or counted as complete while a turn is in flight that may
change it (`rest`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from rolltree._native import Step, Turn
from rolltree.budget import Floats, best_length
from rolltree.errors import RolltreeError
from rolltree.serving.core import ServingCore
from rolltree.serving.request import ServedRequest
from rolltree.serving.streamed_requests import StreamedBook, TurnRows
from rolltree.serving.timing import Scheduled
from rolltree.serving.versions import Source
from rolltree.types import Int32Array, Int64Array

TURNS = 4
"""Steps in flight at most: two of an engine that schedules asynchronously, one that is being done, one spare."""
TORN = 2
"""Outcome of a turn that failed in the midst of it."""
ANY = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a step is that was launched, by row."""

    ids: list[str]
    slots: Int64Array
    """Shape [rows]: where each row's text is."""
    known: Collection[str]
    """Requests that may be begun."""
    most: int
    """Draft tokens of a row that the next step can verify."""
    running: int
    """Requests that have begun and are not finished."""
    unread: int = 0
    """Tokens of their prompts that are still to be read."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A turn on its way into the stream."""

    index: int
    """Of its row of the buffers."""
    entry: tuple[int, int]
    """Addresses of the function to launch and of its argument."""
    width: int
    """Drafts of each row that the next step shall verify, whatever their number."""


@dataclass(frozen=True, slots=True)
class _Flight:
    number: int
    rows: TurnRows
    shape: Scheduled | None


class StreamedCore(ServingCore):
    """See the module; arguments as `ServingCore`. `use` it before the first step."""

    book: StreamedBook
    book_class = StreamedBook
    _step: Step | None = None
    _buffers: Int32Array
    _wait: Callable[[], None]
    _sizes: Callable[[int], Mapping[int, bool]]

    def use(
        self, buffers: Int32Array, wait: Callable[[], None], sizes: Callable[[int], Mapping[int, bool]] | None = None
    ) -> None:
        """Say where device and core meet.

        Args:
            buffers: int32 [TURNS, requests (3 + draft tokens)], see `rolltree._native.Step`; pinned for a device.
            wait: returns when the stream has done all that was launched.
            sizes: returns the draft lengths for a number of requests, as of `budget.best_length`; None: all.

        """
        every = dict.fromkeys(range(self.engine.max_draft + 1), True)
        self._buffers, self._wait, self._sizes = buffers, wait, sizes or (lambda rows: every)

    def make(self, source: Source = Source.UPDATES) -> None:
        """Make empty trees."""
        self.rest()
        super().make(source)
        self._step, self._flights = None, deque[_Flight]()
        self._gain: tuple[Floats, int] | None = None  # of the last draft that is known, and its rows
        self._shape: Scheduled | None = None

    def close(self) -> None:
        """As `ServingCore.close`, when the stream has done all."""
        with self.guarded():
            self.rest()
        super().close()

    def rest(self) -> None:
        """Wait for the stream and learn of all: for what happens between steps, by command.

        Raises:
            RolltreeError: the stream has ended without doing it.

        """
        if self._step is None:
            return
        if self._flights:
            self._wait()
        self.poll()
        if self._flights:
            raise RolltreeError("the device's stream did not do what was launched: the engine has ended")

    def begin_step(
        self, step: Scheduled, *, ended: Collection[str] = (), changed: Iterable[str] = (),
        coming: Iterable[tuple[str, ServedRequest]] = (),
    ) -> None:  # fmt: skip
        """As `ServingCore.begin_step`; sessions are closed when no turn in flight can have their text."""
        self.poll()
        super().begin_step(step, coming=coming)
        after = 0 if self._step is None else self._step.handed
        self.book.leave([id for id in self.book.running if id in ended] if ended else (), after)
        self.book.leave_changed(changed, after)
        self._shape = step

    def hand_over(self, rows: Rows, text: Int32Array) -> Handed | None:
        """Say what is to be done when the tokens of the step that was launched are there; call it inside `guarded`.

        Args:
            rows: of the step.
            text: int32 [slots, length], prompt and output of each, the same array always; complete when the stream is
                there.

        Returns:
            What to launch at once, or to `take_back`; None: the device is too far behind, and the step has no drafts.

        """
        self.poll()
        step = self._stream_step()
        turn = step.next()
        if turn is None:
            self.counts.late_steps += 1
            return None
        self.book.versions.begin_step()
        whose, n = self.book.rows(rows.ids, rows.known, self._request_of), len(rows.ids)
        self.book.fill(turn, whose)
        turn.slots[:n] = rows.slots
        room = 0 if self.paused or self._failed_now else self._room(rows.running, rows.unread)
        width, self._failed_now = self._width(n, min(rows.most, room // max(n, 1))), False
        index, config = step.handed % TURNS, self.drafter.config
        number = step.hand_over(
            n, text, vocabulary=self.engine.vocab, room=ANY if room else 0, verified=width,
            min_survival=self.drafter.floor(n), min_match=config.min_match,
        )  # fmt: skip
        self._flights.append(_Flight(number, whose, self._shape))
        return Handed(index, step.entry(turn), width)

    def take_back(self) -> None:
        """What was handed over last was not launched."""
        if self._step is not None and self._flights:
            self._step.take_back()
            self._flights.pop()

    def poll(self) -> None:
        """Learn of the turns that are done; never waits."""
        if self._step is None:
            return
        while self._flights and self._flights[0].number <= self._step.done:
            flight = self._flights.popleft()
            self._learn(self._step.result(flight.number), flight)
        self.book.close_left(self._flights[0].number - 1 if self._flights else self._step.handed)

    def _stream_step(self) -> Step:
        if self._step is None:
            engine = self.engine
            self._step = Step(self.drafter.cache._forest, engine.max_requests, engine.max_draft, self._buffers)
        return self._step

    def _width(self, rows: int, most: int) -> int:
        cost, sizes = self.drafter.cost, {n: stays for n, stays in self._sizes(rows).items() if n <= most}
        if cost is None or self._gain is None or not rows:
            return max(sizes, default=0)
        gain, of = self._gain
        return best_length(gain * (rows / of), sizes, cost, rows=rows)[0]

    def _learn(self, turn: Turn, flight: _Flight) -> None:
        if turn.outcome == TORN:
            raise RolltreeError(f"a step in the stream failed in the midst of it: {turn.error}")
        if turn.outcome:  # nothing has changed, and the next turn has its text
            self._count_failure(RolltreeError(f"a step in the stream failed: {turn.error}"))
            return
        work = self.book.took(turn, flight.rows)
        self.drafter.cache.took_in(work.handles, work.tokens, work.offsets)
        rows, tokens, counts = len(work.rows), len(work.tokens), self.counts
        counts.drafted, counts.accepted = counts.drafted + turn.drafted, counts.accepted + turn.accepted
        if rows:
            self._gain = turn.gain.copy(), rows
            counts.steps, counts.row_steps = counts.steps + 1, counts.row_steps + rows
            counts.tokens += tokens
            if flight.shape is not None:
                self._effect.begin(flight.shape)
                self._effect.price(rows, tokens)
            self._watch(rows, tokens, turn.drafted)
        self._failed_in_a_row = 0
