"""Fewer drafts than the scheduler has places for: a shortened copy of its schedule, for the V2 runner.

vLLM's scheduler gives every request K places; what the runner does not verify counts there as rejected, and the tokens
taken for computed are taken back as they are for a rejection. So drafts may be ragged without a word to the scheduler.
The schedule itself is never touched: with one process the scheduler holds the same object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def shortened(schedule: Any, drafted: Mapping[str, int]) -> Any:
    """Return the schedule with only as many draft places as there are drafts; the same object where nothing is cut.

    Batches with structured output stay whole: their masks have a row for every place.

    Args:
        schedule: vLLM's `SchedulerOutput`.
        drafted: draft tokens of each request; none for those that are missing.

    """
    places = schedule.scheduled_spec_decode_tokens
    cuts = {id: len(tokens) - min(len(tokens), drafted.get(id, 0)) for id, tokens in places.items()}
    if schedule.has_structured_output_requests or not any(cuts.values()):
        return schedule
    left = {id: tokens[: len(tokens) - cuts[id]] for id, tokens in places.items()}
    return dataclasses.replace(
        schedule,
        scheduled_spec_decode_tokens={id: tokens for id, tokens in left.items() if tokens},
        num_scheduled_tokens={id: n - cuts.get(id, 0) for id, n in schedule.num_scheduled_tokens.items()},
        total_num_scheduled_tokens=schedule.total_num_scheduled_tokens - sum(cuts.values()),
    )
