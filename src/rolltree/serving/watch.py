"""Says what drafting brings, once, after a warm-up; and once when it brings nothing any more, or cannot.

A pure state machine: it counts requests and steps, is given seconds, and logs nothing itself. A window is complete
after `WINDOW` pairs of a request and a step; what it brought is judged then. No draft depends on it.

Invariant: one line for each time that drafting stops, after which it must have worked again to be reported again; one
line that it works; at most one that it brings nothing yet.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from rolltree.budget import CostModel
from rolltree.metrics import SAVINGS, in_words, minus
from rolltree.serving.counts import ServingCounts

WINDOW = 4096
"""Pairs of a request and a step: enough that the tokens of one pair do not matter."""
QUIET_WINDOWS = 4
"""Windows without effect after which drafting has stopped: a batch of new prompts passes in fewer."""
WARM_WINDOWS = 16
"""Windows after which it is said what drafting brings, once it does: the cost of a step is known, drafts are ranked."""
WARM_STEPS = 256
"""Engine steps, too: with large batches windows pass before the cost of a step is known."""
PATIENT_WINDOWS = 64
"""Windows after which it is said also that it brings little or nothing."""
WORKS = 1.05
"""Tokens a step from which on drafting brings something."""
QUIET = 1.005
"""Tokens a step below which it does not: 1 without speculation."""
LIKELY = 0.8
"""Chance of each draft token that good drafts have; where such drafts do not pay, none do."""


def pays(cost: CostModel | None, rows: int, width: int) -> bool:
    """Return whether good drafts of some length up to `width` for each of `rows` requests raise the rate of tokens."""
    if cost is None or rows < 1:
        return True
    plain = cost.seconds(rows)
    tokens = 1.0
    for length in range(1, width + 1):
        tokens += LIKELY**length
        if cost.seconds(rows, rows * length, length) < tokens * plain:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Line:
    """A line for the log."""

    text: str
    level: int
    """Of `logging`."""


class Watch:
    """Watches tokens per step."""

    def __init__(self) -> None:
        self._rows = self._tokens = self._drafted = self._steps = 0
        self._quiet = self._windows = self._all_steps = 0
        self._seconds: Mapping[str, float] = {}
        self._worked = self._said = self._said_never = self._said_gain = self._said_little = False

    def add(self, rows: int, tokens: int, drafted: int) -> bool:
        """Note one step: requests that got tokens, these tokens, draft tokens proposed. True: call `judge` now."""
        self._steps += 1
        self._rows += rows
        self._tokens += tokens
        self._drafted += drafted
        return self._rows >= WINDOW

    @property
    def mean_rows(self) -> int:
        """Requests of a step in the window."""
        return round(self._rows / max(self._steps, 1))

    def judge(self, counts: ServingCounts, *, paused: bool, pays: bool) -> Line | None:
        """End a window; return what is to be said, mostly nothing.

        Args:
            counts: the engine's; of its estimated seconds, what is new counts. A window in which no draft can pay is
                counted there.
            paused: drafting is paused now.
            pays: good drafts would pay in batches of this size.

        """
        counts.compute_bound_row_steps += 0 if pays else self._rows
        window = {"tokens": self._tokens, "row_steps": self._rows} | self._new_seconds(counts)
        rate, drafted, rows, steps = self._tokens / self._rows, self._drafted, self.mean_rows, self._steps
        self._rows = self._tokens = self._drafted = self._steps = 0
        self._windows += not paused
        self._all_steps += steps
        self._quiet = self._quiet + 1 if rate < QUIET else 0
        if rate >= WORKS:
            self._worked, self._said = True, False
        why = _why(paused, pays, drafted, rows)
        text = self._stopped(paused or not pays, why) if self._quiet >= QUIET_WINDOWS else ""
        if text:
            return Line(text, logging.WARNING)
        text = self._brings(rate, window, why)
        return Line(text, logging.INFO) if text else None

    def _new_seconds(self, counts: ServingCounts) -> dict[str, float]:
        now = {name: getattr(counts, name) for name in SAVINGS["estimated_time_saved"]}
        new, self._seconds = minus(now, self._seconds), now
        return new

    def _stopped(self, is_clear: bool, why: str) -> str:
        if self._worked and not self._said:
            self._said = self._said_never = True
            return f"Drafting worked and has stopped to: one token a step for a while. {why}"
        if is_clear and not (self._worked or self._said_never):
            self._said_never = True
            return f"Drafting is on but does nothing. {why}"
        return ""

    def _brings(self, rate: float, window: Mapping[str, float], why: str) -> str:
        warm = self._windows >= WARM_WINDOWS and self._all_steps >= WARM_STEPS
        if warm and rate >= WORKS and not self._said_gain:
            self._said_gain = True
            return in_words(window)
        if self._windows >= PATIENT_WINDOWS and not (self._said_gain or self._said_little or self._said_never):
            self._said_little = True
            if rate >= QUIET:
                return f"{in_words(window)} That is little so far: more comes as prompts and texts repeat."
            return f"Drafting has brought nothing yet, which is normal while every prompt is new. {why}"
        return ""


def _why(paused: bool, pays: bool, drafted: int, rows: int) -> str:
    """The likeliest reason, by what the window shows."""
    if paused:
        return "It is paused, by control.pause() or after too many failures (see the log); control.resume() goes on."
    if not pays:
        return (
            f"In batches of {rows} requests a step is bound by compute, so that drafts would cost more than they "
            "bring: no fault, and it begins again with smaller batches."
        )
    if drafted:
        return (
            "Drafts are made and rejected. Likely: the policy changed much (announce each update with a new version), "
            "or prompts, tokenizer or chat template are others under the same keys."
        )
    return (
        "No drafts are made. Likely: every prompt is new, because the keys or sessions that requests name changed or "
        "the prompts differ in a detail (a date, a tokenizer, a chat template); or the trees were cleared."
    )
