"""One draft length for all rows of a V2 step: what is chosen, what the runner gets, and how fillers are counted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree.budget import CostModel, allocate
from rolltree.drafting import TreeDrafter
from rolltree.serving.lengths import Drafted
from rolltree.serving.timing import Scheduled
from rolltree.vllm.adaptive import Confidences, conditional
from rolltree.vllm.draft_lengths import RAGGED, DraftLengths, Graphs, Verified, common_places
from rolltree.vllm.step_drafts import StepDrafts

SIZES = (0, 2, 4, 8)
FLAT = CostModel(base=1.0, token=1e-3, ungraphed=0.5)
UNIFORM_ONLY = Graphs(lambda rows, drafted, longest: drafted == rows * longest and longest in SIZES, any_lengths=False)
ANY = Graphs(lambda rows, drafted, longest: True, any_lengths=True)


def drafted(
    *lengths: int, chance: float = 0.9, rows: int = 0, room: int = 10**6, cost: CostModel | None = FLAT
) -> Drafted:
    """Drafts whose every token has the same chance."""
    survival = np.cumprod(np.full((len(lengths), 8), chance), axis=1).astype(np.float32)
    return Drafted(
        survival=survival,
        lengths=np.array(lengths, np.int32),
        asked=np.arange(len(lengths)),
        rows=rows or len(lengths),
        room=room,
        cost=cost,
    )


@pytest.mark.parametrize(
    ("way", "graphs", "length"),
    [
        ("uniform", None, 8), ("uniform", UNIFORM_ONLY, 8), ("uniform", ANY, 8),
        ("auto", None, RAGGED), ("auto", UNIFORM_ONLY, 8), ("auto", ANY, RAGGED),
        ("ragged", None, RAGGED), ("ragged", UNIFORM_ONLY, RAGGED),
    ],
)  # fmt: skip
def test_who_has_one_length(way: str, graphs: Graphs | None, length: int) -> None:
    """By itself only where graphs of uniform steps alone are known: on a CPU, eager and PIECEWISE drafts are ragged."""
    plan = DraftLengths(way, SIZES, widest=8)
    plan.begin(8, graphs)
    cut = plan.cut(drafted(8, 7, 1))
    assert plan.length == length
    assert cut.tolist() == [8, 7, 1]  # what is drafted is cheap here; fillers are no drafts


@pytest.mark.parametrize(
    ("way", "graphs", "width", "decides"),
    [
        ("uniform", None, 8, True), ("auto", None, 8, False), ("auto", None, 7, True), ("auto", ANY, 8, False),
        ("auto", UNIFORM_ONLY, 8, True), ("ragged", None, 8, False), ("ragged", UNIFORM_ONLY, 8, True),
    ],
)  # fmt: skip
def test_the_budget_cuts_by_itself_where_that_is_as_good(
    way: str, graphs: Graphs | None, width: int, decides: bool
) -> None:
    """It drafts less where nothing pays, which takes less time."""
    plan = DraftLengths(way, SIZES, widest=8)
    plan.begin(width, graphs)
    assert plan.decides == decides


def test_auto_leaves_the_graphs_where_fillers_cost_more() -> None:
    plan = DraftLengths("auto", SIZES, widest=8)
    plan.begin(8, UNIFORM_ONLY)
    heavy = dataclasses.replace(FLAT, token=0.05, ungraphed=0.01)
    given = drafted(8, *[0] * 15, cost=heavy, chance=0.99)
    cut = plan.cut(given)
    assert plan.length == RAGGED
    assert cut.tolist() == allocate(given.survival, given.lengths, heavy.outside_graphs).tolist()
    assert cut[0] > 0


@pytest.mark.parametrize(
    ("width", "room", "length"), [(8, 10**6, 8), (7, 10**6, 4), (4, 10**6, 4), (0, 10**6, 0), (8, 15, 4), (8, 5, 0)]
)
def test_a_length_has_places_and_room(width: int, room: int, length: int) -> None:
    """Places as the scheduler gives each row by the batch's size; logits for every place, fillers too."""
    plan = DraftLengths("uniform", SIZES, widest=8)
    plan.begin(width, None)
    assert plan.cut(drafted(8, 8, 8, room=room)).tolist() == [length] * 3
    assert plan.length == length


def test_a_length_without_a_graph_is_passed_over() -> None:
    """As vLLM's table has it for this number of requests; 4 would do, but for the price of a step piece by piece."""
    plan = DraftLengths("uniform", SIZES, widest=8)
    for graphs, length in ((UNIFORM_ONLY, 4), (Graphs(lambda rows, drafts, longest: longest == 8, False), 8)):
        plan.begin(8, graphs)
        assert plan.cut(drafted(4, 4, 4)).tolist() == [4] * 3
        assert plan.length == length


@pytest.mark.parametrize(("longest", "length"), [(0, 0), (1, 2), (2, 2), (5, 8), (8, 8)])
def test_without_a_cost_every_draft_is_verified(longest: int, length: int) -> None:
    plan = DraftLengths("uniform", SIZES, widest=8)
    plan.begin(8, None)
    assert plan.cut(drafted(longest, 0, cost=None)).tolist() == [longest, 0]
    assert plan.length == length
    plan = DraftLengths("auto", SIZES, widest=8)
    plan.begin(8, UNIFORM_ONLY)  # nothing to compare by
    plan.cut(drafted(longest, 0, cost=None))
    assert plan.length == RAGGED


def test_a_step_that_nobody_chose_for_has_none() -> None:
    plan = DraftLengths("uniform", SIZES, widest=8)
    plan.begin(8, None)
    plan.cut(drafted(8))
    plan.begin(8, None)  # paused, or failed before
    assert plan.length == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(0, 8), st.booleans(), st.integers(0, 60))
def test_cuts_are_within_drafts_places_and_room(lengths: list[int], width: int, is_auto: bool, room: int) -> None:
    plan = DraftLengths("auto" if is_auto else "uniform", SIZES, widest=8)
    plan.begin(width, UNIFORM_ONLY)
    cut = plan.cut(drafted(*lengths, room=room))
    assert (cut <= np.minimum(lengths, width)).all()
    if plan.length != RAGGED:
        assert plan.length in SIZES
        assert plan.length * len(lengths) <= room
        assert (cut == np.minimum(lengths, plan.length)).all()


@dataclass
class Schedule:
    """What is read of vLLM's `SchedulerOutput`: rows that decode with 8 places each."""

    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=lambda: {id: [-1] * 8 for id in "abc"})
    num_scheduled_tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys("abc", 9))
    total_num_scheduled_tokens: int = 27
    has_structured_output_requests: bool = False


def counts(schedule: object) -> list[int]:
    return list(schedule.num_scheduled_tokens.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("length", "query"), [(0, 1), (2, 3), (4, 5), (8, 9)])
def test_all_rows_of_a_decode_step_have_the_length(length: int, query: int) -> None:
    """Those with shorter drafts, or none, too; the scheduler's own schedule stays."""
    plan, schedule = DraftLengths("uniform", SIZES, widest=8), Schedule()
    short = plan.shortened(schedule, {"a": min(8, length), "b": min(1, length)}, length)
    assert counts(short) == [query] * 3
    assert short.total_num_scheduled_tokens == 3 * query
    assert all(short.scheduled_spec_decode_tokens.values())
    assert schedule == Schedule()
    assert plan.verified.places == dict.fromkeys("abc", length)


def test_steps_that_read_a_prompt_are_ragged() -> None:
    schedule = Schedule()
    schedule.num_scheduled_tokens["reads"], schedule.total_num_scheduled_tokens = 40, 67
    plan = DraftLengths("uniform", SIZES, widest=8)
    assert counts(plan.shortened(schedule, {"a": 4, "b": 1}, 4)) == [5, 2, 1, 40]
    assert plan.verified.fillers({"a": 3, "b": 1, "c": 1}) == (0, 0)


@pytest.mark.parametrize(("drafted", "read", "any_lengths", "left"), [
    (8, 0, False, False), (9, 0, False, True), (8, 1, False, True), (8, 1, True, False),
])  # fmt: skip
def test_a_step_that_reads_a_prompt_leaves_graphs_of_one_length(
    drafted: int, read: int, any_lengths: bool, left: bool
) -> None:
    graphs = Graphs(lambda rows, drafted, longest: drafted == rows * longest, any_lengths)
    step = Scheduled(rows=4, drafted=drafted, longest=2, read=read, continues=True)
    assert graphs.left_by(step) == left


def test_a_row_that_lacks_places_shortens_all() -> None:
    """Near the longest sequence, or at the end of a step's tokens; what was cut is told to the drafter."""
    schedule = Schedule()
    schedule.scheduled_spec_decode_tokens["b"] = [-1] * 3
    schedule.num_scheduled_tokens["b"], schedule.total_num_scheduled_tokens = 4, 22
    plan = DraftLengths("uniform", SIZES, widest=8)
    assert common_places(schedule) == 3
    assert counts(plan.shortened(schedule, {"a": 4, "b": 1, "c": 2}, 4)) == [3, 3, 3]
    assert plan.verified.fewer() == {"a": 2}


def test_ragged_drafts_that_lost_places_are_told_to_the_drafter() -> None:
    schedule = Schedule()
    schedule.scheduled_spec_decode_tokens = {"a": [-1] * 8, "b": [-1]}
    schedule.num_scheduled_tokens, schedule.total_num_scheduled_tokens = {"a": 9, "b": 2, "c": 1}, 12
    plan = DraftLengths("ragged", SIZES, widest=8)
    plan.shortened(schedule, {"a": 8, "b": 3, "c": 2, "waits": 4}, RAGGED)
    assert plan.verified.fewer() == {"b": 1, "c": 0}  # one that is not in the step is not judged at all


def test_structured_batches_stay_whole() -> None:
    schedule = Schedule(has_structured_output_requests=True)
    plan = DraftLengths("uniform", SIZES, widest=8)
    assert plan.shortened(schedule, {"a": 2}, 2) is schedule
    assert plan.verified.fillers(dict.fromkeys("abc", 1)) == (6 + 8 + 8, 0)


def test_fillers_are_no_drafts_of_ours() -> None:
    """4 places each. a: 4 drafts, all accepted; b: 1 draft and 3 fillers, of which 2 are accepted; c: 2 drafts,
    one accepted, so no filler can be; d: fillers alone, one accepted; e: got nothing, its prompt is being read."""
    verified = Verified(dict.fromkeys("abcde", 4), {"a": 4, "b": 1, "c": 2})
    assert verified.fillers({"a": 5, "b": 4, "c": 2, "d": 2, "e": 0}) == (0 + 3 + 2 + 4, 0 + 2 + 0 + 1)
    assert verified.measured(["b", "d", "e"], [2, 0, -1]).fillers({"b": 3, "d": 1}) == (1, 1)


def test_the_drafter_counts_what_was_verified() -> None:
    """Three tokens drafted, one of them verified: that one is what was drafted, and what was accepted."""
    made = TreeDrafter()
    made.cache.add([1, 2, 3], [7, 8, 9, 7, 8, 2])
    handle = made.open([1, 2, 3])
    made.advance([handle], [7], [0, 1])
    assert made.draft([handle], [3], budget=lambda survival, lengths: lengths.copy()).lengths.tolist() == [3]
    made.verified([handle, -1, handle + 1], [1, 0, 0])
    made.advance([handle], [8, 9], [0, 2])
    assert (made.stats.drafted, made.stats.accepted) == (1, 1)


def test_unlikely_tokens_are_drafted_where_places_are_filled_up_anyway() -> None:
    """The budget by itself would not even make them in a batch that is bound by compute."""
    made = TreeDrafter(cost=CostModel(base=1e-6, token=1.0))
    for next_token in range(4):
        made.cache.add([1, 2, 3], [7, next_token, 9])
    handle = made.open([1, 2, 3])
    made.advance([handle], [7], [0, 1])
    seen: list[int] = []
    assert made.draft([handle], [3]).lengths.tolist() == [0]
    made.draft([handle], [3], budget=lambda survival, lengths: seen.extend(lengths.tolist()) or lengths.copy())  # type: ignore[func-returns-value]
    assert seen[0] > 0


def test_chances_are_those_of_one_place_behind_the_others() -> None:
    survival = np.array([[0.8, 0.4, 0.1], [0.5, np.nan, np.nan], [0.5, 0.0, 0.0]], np.float32)
    found = conditional(survival, np.array([3, 1, 3], np.int32))
    np.testing.assert_allclose(found, [[0.8, 0.5, 0.25], [0.5, 0, 0], [0.5, 0, 0]], rtol=1e-6)
    lengths = np.array([3, 1, 3])[:, None]
    np.testing.assert_allclose(
        np.cumprod(found, axis=1), np.where(np.arange(3) < lengths, np.nan_to_num(survival), 0), rtol=1e-6
    )


def test_chances_stand_beside_the_drafts_of_their_rows() -> None:
    """Rows 1 and 3 are asked for, the first has no session; all ranks get the bits that the first one wrote."""
    rule, drafts = Confidences(), StepDrafts(4, 8, confidences=True)
    rule.begin([1, 3])
    one = drafted(2, chance=0.5, rows=2)
    assert rule.cut(dataclasses.replace(one, asked=np.array([1]))).tolist() == [2]
    drafts.counts[3] = 2
    drafts.length = RAGGED
    rule.write(drafts)
    other = StepDrafts(4, 8, confidences=True)
    other.array = drafts.array.copy()
    assert other.confidences[3].tolist() == [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert not other.confidences[:3].any()
    assert (other.counts.tolist(), other.length) == ([0, 0, 0, 2], RAGGED)
    rule.begin([0])  # a step that failed
    again = StepDrafts(4, 8, confidences=True)
    rule.write(again)
    assert not again.array.any()
