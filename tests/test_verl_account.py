"""What verl's logger shows: differences of the servers' counters, ratios of sums, an estimate of the seconds saved."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from rolltree.budget import CostModel
from rolltree.verl.account import Account, seconds_saved, split

COST = CostModel(base=10.0, row=1.0, token=0.5, cell=0.25, ragged=2.0)


def counters(steps: int, rows: int, tokens: int, drafted: int, accepted: int, **more: float) -> dict[str, float]:
    sums = {"steps": steps, "row_steps": rows, "tokens": tokens, "drafted": drafted, "accepted": accepted}
    return {**sums, **more}


def test_numbers_are_of_the_step_and_ratios_of_sums() -> None:
    account = Account()
    account.step([counters(10, 100, 150, 80, 50, cache_bytes=5), counters(10, 10, 10, 0, 0)])
    numbers = account.step(
        [counters(20, 200, 450, 280, 200, cache_bytes=9), counters(20, 110, 110, 0, 0, cache_bytes=1)]
    )
    assert numbers["rolltree/tokens"] == 400
    assert numbers["rolltree/tokens_per_step"] == pytest.approx(400 / 200)
    assert numbers["rolltree/acceptance_rate"] == pytest.approx(150 / 200)
    assert numbers["rolltree/tree_bytes"] == 10
    assert numbers["rolltree/replicas"] == 2


def test_tokens_per_step_is_of_training_rollouts_alone() -> None:
    ahead = {"tokens_run_ahead": 50, "row_steps_run_ahead": 10, "tokens_validation": 30, "row_steps_validation": 30}
    numbers = Account().step([counters(10, 100, 200, 80, 50, **ahead)])
    assert numbers["rolltree/tokens"] == 200
    assert numbers["rolltree/tokens_per_step"] == pytest.approx(120 / 60)


def test_a_replica_that_did_not_answer_is_made_up_for_later() -> None:
    account = Account()
    account.step([counters(1, 1, 10, 0, 0), counters(1, 1, 10, 0, 0)])
    assert account.step([counters(2, 2, 20, 0, 0), None])["rolltree/tokens"] == 10
    assert account.step([counters(3, 3, 30, 0, 0), counters(3, 3, 30, 0, 0)])["rolltree/tokens"] == 10 + 20


def test_without_an_answer_there_are_no_numbers() -> None:
    assert Account().step([None, None]) == Account().step([]) == {}


def test_sources_are_told_apart() -> None:
    numbers = Account().step([counters(1, 1, 9, 8, 7, drafted_history=5, accepted_history=4, drafted_run_ahead=3)])
    assert numbers["rolltree/accepted_history"] == 4
    assert numbers["rolltree/drafted_run_ahead"] == 3


def test_seconds_saved_is_the_difference_of_two_priced_runs() -> None:
    """8 rows, 10 steps, 4 tokens drafted and 3 made a row and step: 30 steps of one token would have been needed."""
    cost = {f"cost_{name}": value for name, value in asdict(COST).items()}
    now = counters(10, 80, 240, 320, 160, **cost)
    expected = 30 * COST.seconds(8) - 10 * COST.seconds(8, drafted=32, longest=4)
    assert seconds_saved(now, {}) == pytest.approx(expected)
    assert Account().step([now, now])["rolltree/seconds_saved"] == pytest.approx(expected), "replicas run side by side"


@pytest.mark.parametrize(
    "cost", [COST, CostModel(base=0.0, token=1e-5, floor=1e-2), CostModel(base=1, token=0.1, floor=4)]
)
def test_seconds_saved_knows_the_floor(cost: CostModel) -> None:
    """Below its knee a step takes as long as it takes: fewer steps are what is saved."""
    priced = {f"cost_{name}": value for name, value in asdict(cost).items()}
    now = counters(100, 3200, 9600, 6400, 6400, **priced)
    expected = 300 * cost.seconds(32) - 100 * cost.seconds(32, drafted=64, longest=2)
    assert seconds_saved(now, {}) == pytest.approx(expected)
    if cost.floor == 1e-2:
        assert expected == pytest.approx(2.0)


def test_drafts_that_are_rejected_cost_time() -> None:
    cost = {f"cost_{name}": value for name, value in asdict(COST).items()}
    saved = seconds_saved(counters(10, 80, 80, 320, 0, **cost), {})
    assert saved is not None
    assert saved < 0


def test_no_estimate_without_a_cost_model() -> None:
    assert seconds_saved(counters(1, 1, 1, 0, 0), {}) is None
    assert "rolltree/seconds_saved" not in Account().step([counters(1, 1, 1, 0, 0)])


def test_of_several_ages_the_oldest_counts() -> None:
    account = Account()
    account.step([counters(1, 1, 1, 0, 0, shared_age=50.0)])
    numbers = account.step([counters(2, 2, 2, 0, 0, shared_age=3.0), counters(2, 2, 2, 0, 0, shared_age=7.0), None])
    assert numbers["rolltree/shared_age"] == 7.0
    assert "shared_age" not in split(numbers)[0]
    assert "rolltree/shared_age" not in Account().step([counters(1, 1, 1, 0, 0)])


def test_sums_can_be_added_up_and_the_rest_is_told_apart() -> None:
    numbers = Account().step([counters(2, 4, 8, 6, 4, cache_bytes=5, drafted_history=6)])
    sums, rest = split(numbers)
    assert sums["tokens"] == 8
    assert sums["row_steps"] == 4
    assert sums["drafted_history"] == 6
    assert rest.keys() == {
        "tokens_per_step",
        "drafted_per_step",
        "acceptance_rate",
        "replicas",
        "tree_bytes",
        "prompts",
        "waiting_prompts",
        "store_waiting",
        "rollouts",
        "sessions",
    }
