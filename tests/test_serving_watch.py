"""Drafting that stopped, or never began, is said once, with the reason that the figures show."""

from __future__ import annotations

import pytest

from rolltree.budget import CostModel
from rolltree.serving.watch import QUIET_WINDOWS, WINDOW, Watch, pays

CHEAP = CostModel(base=1.0, token=0.001)
EXPENSIVE = CostModel(base=0.001, token=1.0)


def windows(
    watch: Watch, count: int, rate: float, *, drafted: int = 0, paused: bool = False, pays: bool = True
) -> list[str]:
    """Run `count` windows of 64 requests a step at `rate` tokens a step; return what was said."""
    said = []
    for _ in range(count):
        while not watch.add(64, round(64 * rate), drafted):
            pass
        said.append(watch.judge(paused=paused, pays=pays))
    return [line for line in said if line]


def test_a_window_counts_requests_and_steps() -> None:
    """Not seconds: the first window ends with the step that completes it."""
    watch = Watch()
    assert [watch.add(64, 64, 0) for _ in range(WINDOW // 64)] == [False] * (WINDOW // 64 - 1) + [True]
    assert watch.mean_rows == 64


def test_it_is_said_once_and_again_only_after_it_worked() -> None:
    """Quiet windows after good ones; a short quiet time is none."""
    watch = Watch()
    assert not windows(watch, 3, 2.0)
    assert not windows(watch, QUIET_WINDOWS - 1, 1.0)
    assert not windows(watch, 1, 1.5)
    assert len(windows(watch, 50, 1.0)) == 1
    assert not windows(watch, 1, 1.02)  # a little, but it does not work
    assert not windows(watch, 50, 1.0)
    assert not windows(watch, 2, 1.5)
    assert len(windows(watch, 50, 1.0)) == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"paused": True}, "control.resume"),
        ({"pays": False}, "no fault"),
        ({"drafted": 5}, "the policy changed"),
        ({}, "the keys or sessions"),
    ],
)
def test_the_reason_is_what_the_figures_show(settings: dict[str, bool], reason: str) -> None:
    """Paused; bound by compute; drafts rejected; no drafts."""
    watch = Watch()
    windows(watch, 1, 2.0)
    (line,) = windows(watch, 50, 1.0, **settings)  # type: ignore[arg-type]
    assert "worked and has stopped" in line
    assert reason in line


def test_a_cold_start_is_no_fault_and_a_hopeless_one_is_said() -> None:
    """Without any repetition yet nothing is said; where it does not pay, once, even when that is learned later."""
    watch = Watch()
    assert not windows(watch, 50, 1.0)
    (line,) = windows(watch, 50, 1.0, pays=False)
    assert "does nothing" in line
    assert "64 requests" in line


def test_when_drafts_pay() -> None:
    """Good drafts pay while weights stream, not where a token costs what a step does, nor where drafting is slow."""
    assert pays(None, 256, 16)
    assert pays(CHEAP, 256, 16)
    assert not pays(EXPENSIVE, 1, 16)
    assert not pays(CostModel(base=1.0, token=0.1, ragged=100.0), 8, 16)
    assert pays(CostModel(base=1.0, token=0.001, ragged=3.0), 8, 16)  # with drafts of more than a few tokens
    assert not pays(CostModel(base=1.0, token=0.001, ragged=3.0), 8, 2)
    assert pays(EXPENSIVE, 0, 16)
