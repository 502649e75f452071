"""Says once when drafting brings nothing: it had worked and stopped, or the budget never let it begin.

A pure state machine: it counts requests and steps, no seconds, and logs nothing itself. A window is complete after
`WINDOW` pairs of a request and a step; what it brought is judged then.

Invariant: one line for each time that drafting stops; after that it must have worked again to be reported again.
"""

from __future__ import annotations

from rolltree.budget import CostModel

WINDOW = 4096
"""Pairs of a request and a step: enough that the tokens of one pair do not matter."""
QUIET_WINDOWS = 4
"""Windows without effect after which drafting has stopped: a batch of new prompts passes in fewer."""
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


class Watch:
    """Watches tokens per step."""

    def __init__(self) -> None:
        self._rows = self._tokens = self._drafted = self._steps = 0
        self._quiet = 0
        self._worked = self._said = self._said_never = False

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

    def judge(self, *, paused: bool, pays: bool) -> str:
        """End a window; return what is to be said, mostly nothing.

        Args:
            paused: drafting is paused now.
            pays: good drafts would pay in batches of this size.

        """
        rate, drafted, rows = self._tokens / self._rows, self._drafted, self.mean_rows
        self._rows = self._tokens = self._drafted = self._steps = 0
        self._quiet = self._quiet + 1 if rate < QUIET else 0
        if rate >= WORKS:
            self._worked, self._said = True, False
        if self._quiet < QUIET_WINDOWS:
            return ""
        if self._worked and not self._said:
            self._said = self._said_never = True
            return (
                f"Drafting worked and has stopped to: one token a step for a while. {_why(paused, pays, drafted, rows)}"
            )
        if not (self._worked or self._said_never or paused or pays):
            self._said_never = True
            return f"Drafting is on but does nothing. {_why(paused, pays, drafted, rows)}"
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
