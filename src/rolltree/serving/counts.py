"""What drafting in an engine counts: since the engine started, whatever trees and drafters it has had meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from rolltree.metrics import DraftStats, count, count_by
from rolltree.serving.request_options import KINDS


@dataclass(slots=True, kw_only=True)
class ServingCounts(DraftStats):
    """A line here is seen in `stats`, at the engine's metrics endpoint, and in the trainer's log."""

    tokens_by_kind: dict[str, int] = count_by(KINDS, "Generated tokens, by what their requests are marked as")
    row_steps_by_kind: dict[str, int] = count_by(KINDS, "Pairs of a request and a step in which it got tokens, by mark")
    errors: int = count("Steps that went without drafts because drafting failed")
    invalid_options: int = count("Requests that were not drafted for because of an invalid option")
    store_refused: int = count("Starts without the store that was asked for, because it could not be used")
    draft_seconds: float = count("Seconds of the engine's own thread that rolltree took")
