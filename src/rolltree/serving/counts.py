"""What drafting in an engine counts: since the engine started, whatever trees and drafters it has had meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from rolltree.metrics import count, count_by
from rolltree.serving.request_options import KINDS
from rolltree.sharing.counts import SharingCounts


@dataclass(slots=True, kw_only=True)
class ServingCounts(SharingCounts):
    """A line here is seen in `stats`, at the engine's metrics endpoint, and in the trainer's log."""

    tokens_by_kind: dict[str, int] = count_by(KINDS, "Generated tokens, by what their requests are marked as")
    row_steps_by_kind: dict[str, int] = count_by(KINDS, "Pairs of a request and a step in which it got tokens, by mark")
    fillers: int = count("Places behind drafts that were verified, too: all requests of a step had one length")
    fillers_accepted: int = count("Fillers that were accepted: their tokens are text, but no drafts of ours")
    compute_bound_row_steps: int = count("Pairs of a request and a step in batches where good drafts would not pay")
    errors: int = count("Steps that went without drafts because drafting failed")
    late_steps: int = count(
        "Steps without drafts because the device was too far behind to be given another draft to make"
    )
    invalid_options: int = count("Requests that were not drafted for because of an invalid option")
    inferred_versions: int = count("Policy versions that nobody named: weight updates seen, or salts of requests")
    inferred_sessions: int = count("Requests whose conversation was taken from the host's own id of it")
    derived_seeds: int = count("Requests without a seed that got one, where sampling is coupled")
    store_refused: int = count("Starts without the store that was asked for, because it could not be used")
    draft_seconds: float = count("Seconds of the engine's own thread that rolltree took")
