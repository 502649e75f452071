"""The run-ahead controller: what it promises, under any sequence of snapshots."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rolltree.errors import InvalidInputError
from rolltree.runahead import (
    Candidate,
    Decision,
    EngineStep,
    Launch,
    PromptOutcome,
    RunAheadConfig,
    RunAheadController,
    Snapshot,
)
from rolltree.runahead.controller import MIN_TAIL_TOKENS, PROOF_STEPS

STEP, ROW = 1e-2, 1e-4


def snapshot(clock: float, live: int, **other: float) -> Snapshot:
    base = {"waiting": 0, "running": 0, "capacity": 32, "step_seconds": STEP, "row_seconds": ROW}
    return Snapshot(clock=clock, live=live, **(base | other))  # type: ignore[arg-type]


def prompts(count: int, *, rollouts: float = 0, soon: int = 1, tokens: int = 100, name: str = "p") -> list[Candidate]:
    return [Candidate(key=f"{name}{i}", rollouts=rollouts, soon=soon, max_tokens=tokens) for i in range(count)]


def in_the_tail(config: RunAheadConfig | None = None, tokens: int = 100_000) -> RunAheadController:
    """A controller that has seen a full batch become a tail of 4 live requests, at clock 1."""
    control = RunAheadController(config)
    control.begin_step(tokens)
    control.decide(snapshot(0, 32), [])
    control.observe(EngineStep(seconds=0.5, live_steps=100, running_steps=0, row_seconds=ROW))
    control.decide(snapshot(0.5, 4), [])
    return control


def keys(decision: Decision) -> list[str]:
    return [launch.key for launch in decision.launch]


def test_launches_into_proven_slack_only() -> None:
    control = in_the_tail()
    assert not control.decide(snapshot(0.5 + (PROOF_STEPS - 1) * STEP, 4), prompts(99)).launch
    assert (
        len(control.decide(snapshot(0.5 + (PROOF_STEPS + 1) * STEP, 4), prompts(99)).launch) == 25
    )  # a quarter slower
    control = in_the_tail()
    for i in range(1, 100):  # requests that come and go every second step: the slots are never proven free
        decision = control.decide(snapshot(1 + i * STEP, 32 if i % 2 else 4), prompts(99))
        assert not decision.launch
    assert RunAheadController().decide(snapshot(0, 4), prompts(9)).launch == ()


def test_slowdown_capacity_and_budget_bound_the_launches() -> None:
    for row, capacity, tokens, expected in (
        (1e-4, 32, 100_000, 25),
        (1e-4, 10, 100_000, 6),
        (5e-4, 32, 100_000, 5),
        (0.0, 32, 100_000, 28),  # a step has room for more rows: they cost nothing
        (1e-4, 32, 1000 * 4, 10),
    ):
        control = RunAheadController(RunAheadConfig(budget_share=0.25, max_slowdown=0.25))
        control.begin_step(tokens)
        control.decide(snapshot(0, 4, capacity=capacity), [])
        control.observe(EngineStep(seconds=0.5, live_steps=10, running_steps=0, row_seconds=row))
        decision = control.decide(snapshot(1, 4, row_seconds=row, capacity=capacity), prompts(99))
        assert len(decision.launch) == expected


def test_real_work_and_the_end_of_it_stop_everything() -> None:
    control = in_the_tail()
    assert control.decide(snapshot(1, 4), prompts(9)).launch
    for other in ({"waiting": 1}, {"live": 0}):
        decision = control.decide(snapshot(1.1, **({"live": 4, "running": 9} | other)), prompts(9))
        assert decision.stop
        assert not decision.launch


def test_cold_and_soon_come_first_and_the_held_out_never() -> None:
    control = in_the_tail(RunAheadConfig(max_slowdown=0.08))
    warm, cold, later = prompts(9, rollouts=2, name="w"), prompts(4, name="c"), prompts(9, soon=2, name="l")
    chosen = keys(control.decide(snapshot(1, 4), [*warm, *later, *cold]))
    free = [c.key for c in cold if not control.is_held_out(c.key)]
    assert chosen[: len(free)] == free
    assert all(key.startswith("l") for key in chosen[len(free) :])
    many = [f"p{i}" for i in range(1000)]
    assert sum(map(control.is_held_out, many)) == pytest.approx(125, abs=40)
    assert not control.decide(snapshot(1, 4), [c for c in prompts(999) if control.is_held_out(c.key)]).launch
    assert control.decide(snapshot(1, 4), prompts(9, rollouts=4, name="x")).reason == "no cold prompts"


def test_a_prompt_is_run_ahead_as_often_as_asked_until_it_is_sampled() -> None:
    control = in_the_tail(RunAheadConfig(samples=3, holdout=0))
    launches = control.decide(snapshot(1, 4), prompts(1)).launch
    assert [launch.sample for launch in launches] == [0, 1, 2]
    for launch in launches:
        control.finished(launch, 10)
    assert not control.decide(snapshot(1, 4), prompts(1)).launch
    control.end_step([PromptOutcome(key="p0", rollouts=3, seconds=1.0, paced=2.0)])
    control.begin_step(100_000)
    control.decide(snapshot(2, 4), [])
    assert len(control.decide(snapshot(3, 4), prompts(1)).launch) == 3


def test_a_launch_that_found_no_place_is_decided_again() -> None:
    """Real requests may take the slots between a decision and its launch: that must not use up the prompts."""
    control = in_the_tail(RunAheadConfig(samples=1, max_slowdown=1), tokens=10_000)
    candidates, clock = prompts(3), 1.0
    for _ in range(5):
        decision = control.decide(snapshot(clock, 4), candidates)
        assert len(decision.launch) == 3
        for launch in decision.launch:
            control.refused(launch)
        clock += STEP
    gauges = control.gauges()
    assert (gauges["launched"], gauges["budget_left_tokens"]) == (0, gauges["budget_tokens"])


def test_short_tails_and_expensive_rows_are_left_alone() -> None:
    control = in_the_tail()
    assert control.decide(snapshot(1, 4, tail_tokens=MIN_TAIL_TOKENS - 1), prompts(9)).reason == "tail too short"
    assert control.decide(snapshot(1, 4, row_seconds=2e-3), prompts(9)).reason == "not worth it"
    assert control.decide(snapshot(1, 4, step_seconds=0, row_seconds=0), prompts(9)).reason == "step cost unknown"


def train(control: RunAheadController, step: int, *, treated: float, control_work: float) -> tuple[int, float]:
    """A training step whose prompts that were run ahead take `treated` row-steps a token: launches, and gauge "on"."""
    control.begin_step(100_000)
    now = 10.0 * step
    control.decide(snapshot(now, 32), [])
    control.observe(EngineStep(seconds=1.0, live_steps=200, running_steps=0, row_seconds=ROW))
    control.decide(snapshot(now + 1, 4), [])
    batch = prompts(24, name=f"{step + 1}-")
    launches = control.decide(snapshot(now + 2, 4), batch).launch
    control.observe(EngineStep(seconds=1.0, live_steps=50, running_steps=40 * len(launches), row_seconds=ROW))
    control.decide(snapshot(now + 3, 0, running=len(launches)), batch)
    for launch in launches:
        control.finished(launch, 100)
    control.end_step([outcome(control, c.key, treated, control_work) for c in prompts(24, name=f"{step}-")])
    return len(launches), control.gauges()["on"]


def outcome(control: RunAheadController, key: str, treated: float, untreated: float) -> PromptOutcome:
    work = untreated if control.is_held_out(key) else treated
    seconds = (1 + int(key.split("-")[1]) % 3) / 48  # prompts differ; 24 of them hold the engine for a second
    return PromptOutcome(key=key, rollouts=0, seconds=seconds, paced=seconds / work)


def test_it_turns_itself_off_when_it_saves_nothing_and_tries_again_later() -> None:
    control = RunAheadController(RunAheadConfig(holdout=3))
    states = [train(control, step, treated=0.5, control_work=0.5) for step in range(40)]
    off = [step for step, (launches, _) in enumerate(states) if not launches]
    assert 2 <= off[0] <= 5
    assert len(off) > 30  # off for longer each time
    assert max(off) < 39 or states[39][1] == 0
    assert control.gauges()["return_seconds"] < 0


def test_it_stays_on_while_it_saves() -> None:
    control = RunAheadController(RunAheadConfig(holdout=3))
    states = [train(control, step, treated=0.4, control_work=0.5) for step in range(20)]
    assert all(launches for launches, _ in states)
    gauges = control.gauges()
    assert gauges["return_seconds"] > 0
    # Two thirds of a step's second are treated; without, they would have taken 0.5 / 0.4 as long.
    assert gauges["saved_seconds"] / 19 == pytest.approx(2 / 3 * (0.5 / 0.4 - 1), rel=0.3)
    assert gauges["cost_seconds"] / 20 == pytest.approx(states[0][0] * 40 * ROW, rel=0.2)


def test_without_a_holdout_it_never_judges_itself() -> None:
    control = RunAheadController(RunAheadConfig(holdout=0))
    assert all(train(control, step, treated=9, control_work=1)[0] for step in range(10))


@pytest.mark.parametrize("bad", [{"holdout": 1}, {"budget_share": -1}, {"samples": 0}, {"max_slowdown": math.inf}])
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=r"runahead\."):
        RunAheadConfig(**bad)  # type: ignore[arg-type]


class World(RuleBasedStateMachine):
    """Real requests and candidates come and go; an engine that obeys the decisions."""

    @initialize(
        capacity=st.integers(1, 40), share=st.sampled_from([0.0, 0.1, 1.0]), samples=st.integers(1, 3),
        holdout=st.sampled_from([0, 4]), slowdown=st.sampled_from([0.0, 0.3, 5.0]),
    )  # fmt: skip
    def start(self, capacity: int, share: float, samples: int, holdout: int, slowdown: float) -> None:
        config = RunAheadConfig(budget_share=share, samples=samples, holdout=holdout, max_slowdown=slowdown)
        self.controls = [RunAheadController(config), RunAheadController(config)]
        self.config, self.capacity = config, capacity
        self.clock, self.live, self.step = 0.0, 0, 0
        self.running: list[Launch] = []
        self.history: list[tuple[float, int]] = []
        self.budget = self.spent = 0
        self.begin(1000)

    def both(self, call) -> object:  # type: ignore[no-untyped-def]
        first, second = (call(control) for control in self.controls)
        assert first == second
        return first

    @rule(tokens=st.integers(0, 5000))
    def begin(self, tokens: int) -> None:
        self.stop()
        self.both(lambda control: control.begin_step(tokens))
        self.budget, self.spent, self.history = int(self.config.budget_share * tokens), 0, []

    @rule(live=st.integers(0, 40), waiting=st.sampled_from([0, 0, 0, 0, 1, 50]), ticks=st.integers(0, 9),
          row=st.sampled_from([0.0, 1e-5, 1e-4, 1e-2]), count=st.integers(0, 60),
          tail=st.sampled_from([5.0, 100.0, math.inf]))  # fmt: skip
    def decide(self, live: int, waiting: int, ticks: int, row: float, count: int, tail: float) -> None:
        self.clock += ticks * STEP
        self.live = min(live, self.capacity - len(self.running))
        now = snapshot(
            self.clock, self.live, waiting=waiting, running=len(self.running), capacity=self.capacity,
            row_seconds=row, tail_tokens=tail,
        )  # fmt: skip
        decision = self.both(lambda control: control.decide(now, self.candidates(count)))
        assert isinstance(decision, Decision)
        self.history.append((self.clock, self.live + waiting))
        self.check(decision, waiting, row)
        if decision.stop:
            self.stop()
        self.running += decision.launch
        if row > 0:
            seen = EngineStep(seconds=STEP, live_steps=self.live, running_steps=len(self.running), row_seconds=row)
            self.both(lambda control: control.observe(seen))

    def candidates(self, count: int) -> Sequence[Candidate]:
        return [
            Candidate(key=f"{self.step + i % 3}-{i}", rollouts=i % 5, soon=i % 3, max_tokens=i * 7 % 200)
            for i in range(count)
        ]

    def check(self, decision: Decision, waiting: int, row: float) -> None:
        assert decision.stop == (waiting > 0 or self.live == 0)
        assert not (decision.launch and (waiting or not self.live))
        if decision.launch:
            recent = [real for clock, real in self.history if clock > self.clock - PROOF_STEPS * STEP]
            assert self.clock - self.history[0][0] >= PROOF_STEPS * STEP * 0.999
            assert len(self.running) + len(decision.launch) + max(recent) <= self.capacity
            assert (len(self.running) + len(decision.launch)) * row <= self.config.max_slowdown * STEP * 1.001
        for launch in decision.launch:
            assert not self.controls[0].is_held_out(launch.key)
            assert launch.sample < self.config.samples

    @rule(which=st.integers(0, 99), share=st.floats(0, 1))
    def finish(self, which: int, share: float) -> None:
        if self.running:
            self.end(self.running.pop(which % len(self.running)), share)

    def end(self, launch: Launch, share: float) -> None:
        tokens = int(share * launch.max_tokens)
        self.spent += tokens
        self.both(lambda control: control.finished(launch, tokens))

    def stop(self) -> None:
        for launch in self.running:
            self.end(launch, 0.5)
        self.running = []

    @rule(seconds=st.floats(1e-3, 100), pace=st.floats(0.5, 10))
    def sampled(self, seconds: float, pace: float) -> None:
        self.stop()
        outcomes = [
            PromptOutcome(key=f"{self.step}-{i}", rollouts=i % 5, seconds=seconds * i, paced=seconds * i * pace)
            for i in range(0, 60, 3)
        ]
        self.both(lambda control: control.end_step(outcomes))
        self.step += 1

    @invariant()
    def budget_holds(self) -> None:
        if hasattr(self, "controls"):
            assert self.spent + sum(launch.max_tokens for launch in self.running) <= self.budget
            gauges = self.both(lambda control: control.gauges())
            assert isinstance(gauges, dict)
            left = self.budget - self.spent - sum(launch.max_tokens for launch in self.running)
            assert gauges["budget_left_tokens"] == left
            assert all(math.isfinite(value) for value in gauges.values())


World.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_world = World.TestCase
