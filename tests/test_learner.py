"""The built-in engine learns its step cost only when asked, and rollouts do not depend on it."""

from __future__ import annotations

import torch

from rolltree import Engine, EngineConfig, Request, SamplingParams, TreeDrafter
from rolltree.engine.cost import measure_cost
from rolltree.step_cost import PRIOR
from tests.engine_tools import prompts, tiny_model

torch.set_num_threads(1)


def batch() -> list[Request]:
    return [Request(p, SamplingParams(max_tokens=30, seed=i)) for i, p in enumerate(prompts(6) * 2)]


def test_the_cost_is_learned_when_asked_and_rollouts_stay() -> None:
    model = tiny_model()
    plain = Engine(model, EngineConfig(slots=8, max_length=64)).generate(batch())
    drafter = TreeDrafter()
    engine = Engine(model, EngineConfig(slots=8, max_length=64, learn_cost=True), drafter)
    assert [r.token_ids for r in engine.generate(batch())] == [r.token_ids for r in plain]
    assert engine.learner is not None
    assert engine.learner.observer.observations == engine.stats.steps
    assert drafter.cost == engine.learner.observer.model
    assert engine.learner.observer.freeze() != PRIOR
    assert engine.stats.estimated_seconds_plain == 0, "not before the cost is known"
    while engine.learner.observer.known is None:
        engine.generate(batch())
    engine.stats.reset()
    engine.generate(batch())
    assert engine.stats.estimated_seconds > 0
    assert engine.stats.estimated_seconds_plain > 0


def test_a_frozen_cost_stays_when_not_asked() -> None:
    model = tiny_model()
    frozen = measure_cost(model, slots=4, max_draft=4)
    drafter = TreeDrafter(cost=frozen)
    engine = Engine(model, EngineConfig(slots=4, max_length=64), drafter)
    engine.generate(batch())
    assert engine.learner is None
    assert drafter.cost is frozen


def test_counters_that_are_reset_do_not_confuse_the_learner() -> None:
    engine = Engine(tiny_model(), EngineConfig(slots=4, max_length=64, learn_cost=True))
    for _ in range(2):
        engine.generate(batch())
        engine.stats.reset()
    assert engine.learner is not None
    assert engine.learner.observer.freeze().seconds(4) > 0
