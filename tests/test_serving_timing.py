"""Which steps of an engine teach the observer what a step costs."""

from __future__ import annotations

from rolltree.serving.timing import Scheduled, StepTimer
from rolltree.step_cost import StepCostObserver


def taught(*steps: Scheduled) -> int:
    """How many of these steps, a millisecond each, were observed; one more begins behind them."""
    observer = StepCostObserver()
    timer = StepTimer(observer)
    for number, step in enumerate((*steps, step_of())):
        timer.take(step, 1e-3 * number)
    return observer.observations


def step_of(*, rows: int = 8, drafted: int = 16, read: int = 0, continues: bool = True) -> Scheduled:
    return Scheduled(rows=rows, drafted=drafted, longest=4, read=read, continues=continues)


def test_steps_that_read_a_little_count_and_those_that_mostly_read_do_not() -> None:
    assert taught(step_of(), step_of()) == 2
    assert taught(step_of(read=24)) == 1
    assert taught(step_of(read=25)) == 0
    assert taught(step_of(rows=0, drafted=0)) == 0


def test_the_time_that_the_engine_was_idle_is_no_step() -> None:
    assert taught(step_of(), step_of(continues=False), step_of()) == 2
