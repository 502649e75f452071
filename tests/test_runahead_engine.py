"""Run-ahead in the built-in engine: idle rows work ahead, real rollouts stay as they are, nothing is left behind."""

from __future__ import annotations

import pytest
import torch

from rolltree import CostModel, Engine, EngineConfig, Request, SamplingParams, TreeDrafter
from rolltree.engine.ahead import RunAheadEngine, as_prompt
from rolltree.runahead import RunAheadConfig, RunAheadController
from tests.engine_tools import prompts, tiny_model

torch.set_num_threads(1)

COST = CostModel(base=1e-2, token=1e-5)
SLOTS = 8
EAGER = RunAheadConfig(budget_share=10, holdout=0, max_slowdown=1)


def batch(step: int, count: int = 12, longest: int = 60) -> list[Request]:
    """Requests of a training step: one long one, the others short; prompts of their own."""
    texts = prompts(count, seed=100 + step)
    return [
        Request(p, SamplingParams(max_tokens=longest if i == 1 else 8, seed=1000 * step + i))
        for i, p in enumerate(texts)
    ]


def run_ahead_engine(config: RunAheadConfig = EAGER, **engine: object) -> RunAheadEngine:
    drafter = TreeDrafter(cost=COST)
    made = Engine(tiny_model(), EngineConfig(slots=SLOTS, max_length=100, **engine), drafter)  # type: ignore[arg-type]
    return RunAheadEngine(made, drafter, RunAheadController(config))


def tokens(results: list) -> list[list[int]]:
    return [r.token_ids for r in results]


def test_real_rollouts_are_the_same_and_the_next_ones_take_fewer_steps() -> None:
    plain = Engine(tiny_model(), EngineConfig(slots=SLOTS, max_length=100), TreeDrafter(cost=COST))
    ahead = run_ahead_engine()
    first, second = batch(0), batch(1)
    assert tokens(ahead.generate(first, [second])) == tokens(plain.generate(first))
    gauges = ahead.control.gauges()
    assert gauges["launched"] > 5
    assert gauges["tokens"] > 40
    before = ahead.engine.stats.row_steps, plain.stats.row_steps
    assert tokens(ahead.generate(second)) == tokens(plain.generate(second))
    # The same seeds and the same policy: what was generated ahead is what comes.
    steps = [e.stats.row_steps - b for e, b in zip((ahead.engine, plain), before, strict=True)]
    assert steps[0] < 0.8 * steps[1]
    assert ahead.control.gauges()["prompts_used"] > 5
    assert ahead.control.gauges()["saved_seconds"] == 0  # nothing was held out to measure it against


def test_nothing_of_it_is_left_or_seen() -> None:
    ahead = run_ahead_engine()
    seen: list[tuple[int, int]] = []
    results = ahead.generate(batch(0), [batch(1), batch(2)], lambda *a: seen.append(a))
    assert seen[-1] == (12, 12)
    assert len(results) == 12
    assert ahead.control.gauges()["launched"] > 5
    assert ahead.control.gauges()["budget_left_tokens"] >= 0
    assert ahead.engine.unfinished == 0
    assert ahead.engine.step() == []
    assert ahead.drafter.cache.stats().sessions == 0
    for request in batch(1):
        assert ahead.drafter.cache.rollouts(request.prompt_token_ids) <= EAGER.samples


def test_text_that_was_cut_short_is_kept() -> None:
    ahead = run_ahead_engine()
    texts = {tuple(request.prompt_token_ids) for request in batch(1)}
    coming = [Request(text, SamplingParams(max_tokens=70, seed=i)) for i, text in enumerate(sorted(texts))]
    ahead.generate(batch(0, longest=40), [coming])
    gauges = ahead.control.gauges()
    assert gauges["cancelled"] > 0
    assert sum(ahead.drafter.cache.rollouts(text) for text in texts) == gauges["launched"]


def test_while_real_requests_wait_nothing_is_launched() -> None:
    ahead = run_ahead_engine()
    reasons: list[tuple[str, int]] = []
    decide = ahead.control.decide

    def watched(snapshot, candidates):  # type: ignore[no-untyped-def]
        decision = decide(snapshot, candidates)
        reasons.append((decision.reason, snapshot.waiting))
        assert not (snapshot.waiting and decision.launch)
        assert snapshot.live + snapshot.running + len(decision.launch) <= SLOTS or not decision.launch
        return decision

    ahead.control.decide = watched  # type: ignore[method-assign]
    ahead.generate(batch(0, count=40), [batch(1)])
    assert [waiting for _, waiting in reasons[:3]] == [40, 32, 32]
    assert ahead.control.gauges()["launched"] > 0


def test_an_interrupt_takes_the_run_ahead_with_it() -> None:
    ahead = run_ahead_engine()

    def interrupt(done: int, total: int) -> None:
        if ahead.driver.running:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ahead.generate(batch(0, longest=90) + batch(3), [batch(1)], interrupt)
    assert ahead.engine.unfinished == 0
    assert not ahead.driver.running
    assert ahead.drafter.cache.stats().sessions == 0


def test_the_same_requests_give_the_same_decisions() -> None:
    gauges = []
    for _ in range(2):
        ahead = run_ahead_engine(RunAheadConfig(holdout=4))
        for step in range(3):
            ahead.generate(batch(step), [batch(step + 1)])
        gauges.append(ahead.control.gauges())
    assert gauges[0] == gauges[1]
    assert gauges[0]["launched"] > 0


def test_a_learned_cost_must_be_proven_first() -> None:
    ahead = run_ahead_engine(learn_cost=True)
    ahead.generate(batch(0, longest=12), [batch(1)])
    assert ahead.control.gauges()["launched"] == 0
    assert ahead.control.reason in ("step cost unknown", "no real work")


def test_budget_in_tokens() -> None:
    ahead = run_ahead_engine(RunAheadConfig(budget_tokens=20, holdout=0, max_slowdown=1))
    for step in range(4):
        before = ahead.control.gauges()["tokens"]
        ahead.generate(batch(step), [batch(step + 1)])
        assert ahead.control.gauges()["tokens"] - before <= 20
    assert ahead.control.gauges()["tokens"] > 0


def named(request: Request) -> str:
    return as_prompt(request).identity


def test_prompts_are_told_apart_by_text_or_by_the_users_key() -> None:
    assert named(Request([1, 2])) == named(Request([1, 2])) != named(Request([1, 3]))
    assert named(Request([1, 2], key="a")) == named(Request([3], key="a"))
