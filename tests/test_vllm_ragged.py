"""Fewer drafts than the scheduler has places for: the copy that the runner gets, and the scheduler's own schedule."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest

from rolltree.vllm.ragged import shortened


@dataclass
class Schedule:
    """What is read of vLLM's `SchedulerOutput`: three requests decode with 4 places each, one reads its prompt."""

    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=lambda: {id: [-1] * 4 for id in "abc"})
    num_scheduled_tokens: dict[str, int] = field(default_factory=lambda: {"a": 5, "b": 5, "c": 5, "reads": 40})
    total_num_scheduled_tokens: int = 55
    has_structured_output_requests: bool = False


@pytest.mark.parametrize(
    ("drafted", "counts", "places"),
    [
        ({"a": 4, "b": 4, "c": 4}, (5, 5, 5), (4, 4, 4)),
        ({"a": 4, "b": 1}, (5, 2, 1), (4, 1, 0)),
        ({"a": 9, "reads": 3}, (5, 1, 1), (4, 0, 0)),
        ({}, (1, 1, 1), (0, 0, 0)),
    ],
)
def test_a_step_has_places_for_the_drafts_alone(
    drafted: dict[str, int], counts: tuple[int, ...], places: tuple[int, ...]
) -> None:
    schedule = Schedule()
    before = copy.deepcopy(schedule)
    short = shortened(schedule, drafted)
    assert tuple(short.num_scheduled_tokens[id] for id in "abc") == counts
    assert tuple(len(short.scheduled_spec_decode_tokens.get(id, [])) for id in "abc") == places
    assert all(short.scheduled_spec_decode_tokens.values())  # vLLM takes an empty list for a draft
    assert short.num_scheduled_tokens["reads"] == 40
    assert short.total_num_scheduled_tokens == sum(short.num_scheduled_tokens.values())
    assert schedule == before  # the scheduler holds this very object


def test_nothing_is_copied_where_nothing_is_cut() -> None:
    schedule = Schedule()
    assert shortened(schedule, {"a": 4, "b": 4, "c": 4}) is schedule


def test_batches_with_structured_output_stay_whole() -> None:
    """Their masks have a row for every place."""
    schedule = Schedule(has_structured_output_requests=True)
    assert shortened(schedule, {"a": 1}) is schedule
