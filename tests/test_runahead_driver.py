"""The driver of run-ahead without any engine: what a host may rely on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rolltree import CostModel
from rolltree.runahead import RunAheadConfig, RunAheadController
from rolltree.serving.ahead import PROVEN_STEPS, AheadDriver, Prompt

SLOTS = 4
COST = CostModel(base=1.0, token=1e-6)
EAGER = RunAheadConfig(budget_share=10, holdout=0, max_slowdown=1)


class Clock:
    """Moves by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def prompt(number: int, limit: int | None = 40) -> Prompt:
    return Prompt(token_ids=[1, number], sampling=SimpleNamespace(max_tokens=limit))


def in_the_tail(cost: CostModel | None = COST) -> tuple[AheadDriver[str], Clock]:
    """A driver whose slots but one have been free for a while."""
    clock = Clock()
    driver = AheadDriver[str](SLOTS, RunAheadController(EAGER), cost=cost, clock=clock)
    driver.begin([[prompt(i) for i in range(9)]], expected_tokens=1000)
    driver.started("real", "a", 100)
    for _ in range(6):
        assert not driver.decide(*driver.load).launch or clock.now > 3
        clock.now += 1
        driver.stepped(1, 0)
    return driver, clock


def test_a_launch_takes_a_slot_before_it_is_submitted() -> None:
    driver, _ = in_the_tail()
    launches = driver.decide(*driver.load).launch
    assert len(launches) == SLOTS - 1
    for number, launch in enumerate(launches):
        assert driver.has_room
        driver.launched(f"ahead{number}", launch)
    assert not driver.has_room
    driver.running["ahead0"].tokens = 7
    driver.finished("ahead0")
    driver.finished("ahead0", cancelled=True)  # the first word counts
    assert driver.has_room
    gauges = driver.control.gauges()
    assert (gauges["tokens"], gauges["cancelled"]) == (7, 0)


def test_what_was_decided_and_never_launched_gives_its_budget_back() -> None:
    driver, _ = in_the_tail()
    first, *rest = driver.decide(*driver.load).launch
    driver.refused(first)
    assert rest
    driver.end()
    gauges = driver.control.gauges()
    assert (gauges["launched"], gauges["budget_left_tokens"]) == (0, gauges["budget_tokens"])


def test_a_prompt_whose_time_has_come_is_not_run_ahead_any_more() -> None:
    driver, clock = in_the_tail()
    for number in range(1, 9):
        driver.started(f"real{number}", prompt(number).identity, 40)
        driver.ended(f"real{number}")
    clock.now += 9
    launches = driver.decide(*driver.load).launch
    assert {driver.prompt(launch)[0].identity for launch in launches} == {prompt(0).identity}


def test_a_request_that_outlives_a_step_is_live_in_the_next() -> None:
    driver, clock = in_the_tail()
    driver.end(complete=False)
    driver.begin()
    assert driver.load == (1, 0)
    clock.now += 2
    driver.stepped(1, 0)
    request = driver.ended("real")
    assert request.seconds == 8
    assert driver.load == (0, 0)


def test_outputs_of_one_request_mark_the_steps_whose_cost_is_learned() -> None:
    driver, clock = in_the_tail(cost=None)
    driver.started("other", "b", 100)
    for tokens in range(1, PROVEN_STEPS + 2):
        assert driver.known_cost is None
        clock.now += 1
        driver.output("real", tokens)
        driver.output("other", tokens)
    assert driver.observer.observations == PROVEN_STEPS  # the first interval is not one step
    assert driver.known_cost is not None
    both = [driver.ended(name) for name in ("real", "other")]
    assert sum(request.seconds for request in both) == pytest.approx(clock.now)
    assert [request.row_steps for request in both] == [PROVEN_STEPS + 1] * 2


def test_waiting_requests_hold_no_engine() -> None:
    clock = Clock()
    driver = AheadDriver[int](SLOTS, cost=COST, clock=clock)
    driver.begin()
    for number in range(SLOTS + 2):
        driver.started(number, "a", 10)
    assert driver.load == (SLOTS, 2)
    clock.now = 4.0
    driver.stepped(SLOTS, 0)
    assert [driver.ended(number).seconds for number in range(SLOTS + 2)] == [1.0] * SLOTS + [0.0] * 2


def test_rollouts_that_ended_make_a_prompt_warm_and_its_length_known() -> None:
    driver = AheadDriver[int](SLOTS, RunAheadController(EAGER), cost=COST, clock=Clock())
    for _ in range(EAGER.warm_rollouts):
        driver.begin()
        driver.started(0, prompt(0, None).identity, 10**6)
        request = driver.ended(0)
        request.tokens, request.row_steps = 30, 20
        driver.end()
    driver.begin()
    assert driver.announce([[prompt(0, None), prompt(1, None)]]) == 1
    assert driver.expected_tokens([prompt(0, None)])[0] == pytest.approx(30, rel=0.1)
