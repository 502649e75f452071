"""What drafting brings is said once, and so is drafting that stopped or never began, with what the figures show."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from rolltree.budget import CostModel
from rolltree.metrics import ratios_of
from rolltree.serving import saved, watch
from rolltree.serving.core import ServingCore
from rolltree.serving.counts import ServingCounts
from rolltree.serving.watch import PATIENT_WINDOWS, QUIET_WINDOWS, WARM_WINDOWS, WINDOW, Watch, pays
from tests.toy_host import ToyHost

CHEAP = CostModel(base=1.0, token=0.001)
EXPENSIVE = CostModel(base=0.001, token=1.0)


def windows(
    watch: Watch, count: int, rate: float, *, drafted: int = 0, paused: bool = False, pays: bool = True,
    counts: ServingCounts | None = None, seconds: Sequence[float] = (0.0, 0.0), level: int = logging.WARNING,
) -> list[str]:  # fmt: skip
    """Run `count` windows of 64 requests a step at `rate` tokens a step; return the lines of this level.

    `seconds` are what the steps of a window take with drafts and without, by the estimate.
    """
    said, counts = list[str](), counts or ServingCounts()
    for _ in range(count):
        while not watch.add(64, round(64 * rate), drafted):
            pass
        counts.estimated_seconds += seconds[0]
        counts.estimated_seconds_plain += seconds[1]
        line = watch.judge(counts, paused=paused, pays=pays)
        said += [line.text] if line is not None and line.level == level else []
    return said


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


def gains(watch: Watch, count: int, rate: float, **settings: object) -> list[str]:
    return windows(watch, count, rate, level=logging.INFO, **settings)  # type: ignore[arg-type]


def test_what_drafting_brings_is_said_once_after_a_warm_up() -> None:
    """Tokens a step of the latest window, and the time saved in it where there is an estimate."""
    watch, counts = Watch(), ServingCounts()
    assert not gains(watch, WARM_WINDOWS - 1, 1.5, counts=counts, seconds=(9.0, 9.0))
    (line,) = gains(watch, 500, 2.0, counts=counts, seconds=(6.0, 10.0))
    assert line.startswith("Drafting brings 2.00 tokens for each request and step in place of 1, and saves 40% of")
    assert "estimated" in line
    (line,) = gains(Watch(), 500, 2.0)
    assert line == "Drafting brings 2.00 tokens for each request and step in place of 1."
    assert "takes 20% more" in gains(Watch(), 50, 1.1, seconds=(12.0, 10.0))[0]


def test_it_is_said_when_it_begins_to_work() -> None:
    """A cold start may take long; until then one line says that there is nothing yet, or little."""
    cold = Watch()
    assert not gains(cold, PATIENT_WINDOWS - 1, 1.0)
    (line,) = gains(cold, 500, 1.0, drafted=3)
    assert "nothing yet" in line
    assert "rejected" in line
    assert len(gains(cold, 10, 1.4)) == 1
    (line,) = gains(Watch(), 500, 1.03)
    assert line.startswith("Drafting brings 1.03")
    assert "little so far" in line


def test_a_pause_is_no_warm_up_and_bound_windows_are_counted() -> None:
    idle, counts = Watch(), ServingCounts()
    assert not gains(idle, 2 * PATIENT_WINDOWS, 1.0, paused=True)
    assert len(windows(idle, 100, 1.0, pays=False, counts=counts)) == 0, "the pause was said already"
    assert counts.compute_bound_row_steps == 100 * WINDOW


TRUTH = CostModel(base=1.0, row=0.02, token=0.05, cell=0.01, ragged=0.1)
"""Of the host's clock: drafts pay, and no two terms are alike."""


class TimedHost(ToyHost):
    """Its steps take what `truth` says, by its own clock."""

    def __init__(self, truth: CostModel, **options: Any) -> None:
        super().__init__(**options)
        self.truth = truth

    def _draft(self, ids: list[str]) -> dict[str, list[int]]:
        drafts = super()._draft(ids)
        lengths = [len(draft) for draft in drafts.values()]
        self.seconds += self.truth.seconds(len(ids), sum(lengths), max(lengths))
        return drafts


def train(host: ToyHost, epochs: int, **options: Any) -> dict[str, list[int]]:
    for n in range(24 * epochs):  # many for four slots: the end, where few run, weighs little
        host.add(f"{len(host.states)}", [n % 24, 39 - n % 24], max_tokens=100, **options)
    host.run()
    return {id: state.output for id, state in host.states.items()}


def core_of(host: ToyHost) -> ServingCore:
    assert host.core is not None
    return host.core


@pytest.mark.parametrize("cost", ["observed", "off"])
def test_the_estimate_is_what_the_hosts_clock_says(
    cost: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Against the same host without drafts; nothing is estimated with a cost that was not observed."""
    monkeypatch.setattr(watch, "WINDOW", 32)
    plain, host = TimedHost(TRUTH, speculate=False), TimedHost(TRUTH, cost=cost)
    with caplog.at_level(logging.INFO, "rolltree"):
        assert train(host, 2) == train(plain, 2)
        begun = (host.seconds, plain.seconds, core_of(host).counts.copy())
        assert train(host, 4) == train(plain, 4)
    stats = core_of(host).stats()
    lines = [line for line in caplog.messages if "Drafting brings" in line]
    assert len(lines) == 1
    assert ("of decoding, estimated" in lines[0]) == (cost == "observed")
    if cost == "off":
        assert stats["estimated_seconds"] == stats["estimated_seconds_plain"] == 0
        assert "estimated_time_saved" not in stats
        return
    true, late = 1 - (host.seconds - begun[0]) / (plain.seconds - begun[1]), core_of(host).counts.since(begun[2])
    assert true > 0.3
    assert ratios_of(late.sums())["estimated_time_saved"] == pytest.approx(true, abs=0.08)
    assert late.estimated_seconds == pytest.approx(host.seconds - begun[0], rel=0.05)
    assert stats["estimated_seconds"] < host.seconds, "the first steps, whose cost was not known, are left out"


def test_a_silent_loss_of_drafts_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens a step had been good, and fall to 1 without an error: somewhere behind the core the drafts are lost."""
    monkeypatch.setattr(watch, "WINDOW", 32)
    host = TimedHost(TRUTH, cost="observed")
    train(host, 2)
    assert not caplog.messages
    draft = core_of(host).draft
    monkeypatch.setattr(core_of(host), "draft", lambda ids, **given: [[] for _ in draft(ids, **given)])
    train(host, 2)
    (line,) = caplog.messages
    assert "worked and has stopped" in line
    assert core_of(host).stats()["errors"] == 0


def test_rows_that_want_no_drafts_are_no_loss(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A validation that turns drafts off, however long, is not reported as a loss."""
    monkeypatch.setattr(watch, "WINDOW", 32)
    host = ToyHost()
    train(host, 2)
    train(host, 2, draft=False)
    assert not caplog.messages


def test_drafts_do_not_depend_on_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every figure of it broken, the same tokens are drafted in the same steps."""
    right, broken = (TimedHost(TRUTH, cost="observed") for _ in range(2))
    monkeypatch.setattr(watch, "WINDOW", 32)
    texts = train(right, 2)
    monkeypatch.setattr(saved, "add_estimate", lambda *_, **__: None)
    monkeypatch.setattr(watch.Watch, "judge", lambda *_, **__: None)
    assert train(broken, 2) == texts
    assert (broken.steps, broken.drafted, broken.seconds) == (right.steps, right.drafted, right.seconds)
