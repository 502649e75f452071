"""Counters: a new one is one line, and every place that shows counters has it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from rolltree.engine import EngineStats
from rolltree.metrics import (
    CacheStats,
    Counters,
    DraftStats,
    add_up,
    count,
    count_by,
    docs_of,
    in_words,
    minus,
    with_ratios,
)
from rolltree.metrics import values_of as values
from rolltree.trl import RolloutRecord
from rolltree.verl.account import Account, split


@dataclass(slots=True, kw_only=True)
class Planted(DraftStats):
    """A new counter, and one by kind."""

    novelties: int = count("Novelties seen")
    tokens_by_kind: dict[str, int] = count_by(("rollout", "run-ahead"), "Tokens")


def planted() -> Planted:
    made = Planted(steps=2, row_steps=8, tokens=24, drafted=20, accepted=16, novelties=3)
    made.drafted_by_source["history"] += 5
    made.tokens_by_kind["run-ahead"] += 7
    return made


def test_a_line_makes_a_name_a_value_and_its_documentation() -> None:
    sums = planted().sums()
    assert sums.keys() == docs_of(Planted).keys() >= docs_of(DraftStats).keys()
    assert (sums["novelties"], sums["tokens_run_ahead"], sums["drafted_history"]) == (3, 7, 5)
    assert docs_of(Planted)["novelties"] == "Novelties seen"


def test_arithmetic_covers_every_counter() -> None:
    now, before = planted(), planted().copy()
    now.novelties += 4
    now.tokens_by_kind["rollout"] += 1
    new = now.since(before)
    assert {name: value for name, value in new.sums().items() if value} == {"novelties": 4, "tokens_rollout": 1}
    assert before + new == now == Planted.of(now.sums()), "and a copy shares no dictionary"
    assert minus(now.sums(), before.sums()) == new.sums()
    assert add_up(before.sums(), new.sums(), {}) == now.sums()
    now.reset()
    assert now == Planted()


def test_ratios_are_of_sums() -> None:
    two = with_ratios(add_up(planted().sums(), planted().sums()))
    assert two["tokens_per_step"] == planted().tokens_per_step == 3
    assert two["acceptance_rate"] == planted().acceptance_rate == planted().ratio("acceptance_rate") == 0.8
    assert planted().snapshot().keys() - planted().sums().keys() == {
        "tokens_per_step", "drafted_per_step", "acceptance_rate",
    }  # fmt: skip
    assert Counters().tokens_per_step == 0


def test_counters_are_slotted() -> None:
    for kind in (Counters, DraftStats, EngineStats):
        with pytest.raises(AttributeError):
            kind().novelty = 1


def test_what_is_held_is_no_sum() -> None:
    stats = CacheStats(prompts=3, hits=5)
    assert values(stats, held=True)["prompts"] == 3
    assert values(stats) == {"evicted_prompts": 0, "hits": 5, "opened": 0, "rebuilt_prompts": 0}


def test_a_trainers_log_shows_every_counter() -> None:
    numbers = Account().step([planted().snapshot()])
    assert numbers["rolltree/novelties"] == split(numbers)[0]["novelties"] == 3
    record = RolloutRecord(step=0, training=True, sequences=1, seconds=2.0, engine=EngineStats(tokens=6, padded=9))
    assert record.metrics()["rolltree/padded"] == record.sums()["padded"] == 9
    assert record.metrics()["rolltree/tokens_per_second"] == 3


def test_time_saved_is_a_share_of_sums_and_absent_where_nothing_is_known() -> None:
    one, two = ({"estimated_seconds": used, "estimated_seconds_plain": 10.0} for used in (2.0, 12.0))
    assert with_ratios(add_up(one, two))["estimated_time_saved"] == pytest.approx(1 - 14 / 20)
    assert with_ratios(two)["estimated_time_saved"] == pytest.approx(-0.2)
    assert "estimated_time_saved" not in planted().snapshot()
    assert "estimated_time_saved" not in split(Account().step([planted().snapshot()]))[0]
    logged = Account().step([planted().snapshot() | one])
    assert logged["rolltree/estimated_time_saved"] == pytest.approx(0.8)
    assert "estimated_time_saved" not in split(logged)[0], "a ratio is not added up"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "Drafting brings 2.00 tokens for each request and step in place of 1."),
        ({"estimated_seconds": 3.0, "estimated_seconds_plain": 4.0}, "saves 25% of the time of decoding, estimated"),
        ({"seconds": 3.0, "seconds_plain": 6.0, "estimated_seconds_plain": 4.0}, "saves 50% of the time of generating"),
        ({"estimated_seconds": 5.0, "estimated_seconds_plain": 4.0}, "takes 25% more than the time of decoding"),
        ({"compute_bound_row_steps": 6}, "For 60% of them batches were bound by compute"),
    ],
)
def test_what_drafting_brings_in_words(more: dict[str, float], said: str) -> None:
    assert said in in_words({"tokens": 20, "row_steps": 10} | more)


def test_nothing_generated_is_nothing_to_say() -> None:
    assert in_words({}) == in_words({"tokens": 0, "row_steps": 0}) == ""
