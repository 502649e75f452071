"""The replay against the real thing: a model that generates with the built-in engine, and the record of it replayed."""

from __future__ import annotations

import numpy as np
import pytest

from rolltree.budget import CostModel
from rolltree.cache import RolloutCache
from rolltree.config import DraftConfig
from rolltree.demo.assets import load_model, load_tokenizer
from rolltree.demo.task import sample_problems
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.replay.drafters import DrafterSpec, Limits
from rolltree.replay.profiles import Measured
from rolltree.replay.records import Rollout, Selection
from rolltree.replay.run import ReplayConfig, replay
from rolltree.sampling import SamplingParams

COST = CostModel(base=1.0, token=0.02)


def generate(slots, epochs=2):
    """Greedy decoding, so that the record says all there is to know: the rollouts, and the counts of each epoch."""
    tokenizer, cache = load_tokenizer(), RolloutCache()
    drafter = TreeDrafter(cache, DraftConfig(max_draft=8), cost=COST)
    engine = Engine(
        load_model().eval(), EngineConfig(slots=slots, max_length=300, max_draft=8, rule="one-hot"), drafter
    )
    prompts = [tokenizer(p.prompt)["input_ids"] for p in sample_problems(6, 11) for _ in range(2)]
    sampling = SamplingParams(temperature=0.0, max_tokens=250, stop_token_ids=(tokenizer.eos_token_id,))
    rollouts, counts = [], []
    for epoch in range(epochs):
        cache.set_version(epoch)
        before = drafter.stats.copy()
        for sample, result in enumerate(engine.generate([Request(prompt, sampling) for prompt in prompts])):
            prompt, tokens = (np.array(ids, np.int32) for ids in (prompts[sample], result.token_ids))
            rollouts.append(
                Rollout(prompt_id=str(prompts[sample]), prompt=prompt, tokens=tokens, step=epoch, sample=sample)
            )
        counts.append(drafter.stats.since(before))
    return rollouts, counts


@pytest.mark.parametrize("slots", [12, 4])
def test_the_replay_does_what_the_engine_did(slots):
    rollouts, counts = generate(slots)
    config = ReplayConfig(
        drafters=[DrafterSpec.parse("rolltree")], batches=[slots], profile=Measured("frozen", COST),
        limits=Limits(max_draft=8), ceiling=False,
    )  # fmt: skip
    steps = replay(Selection().select([], rollouts), config, lambda case, tokens: None)["cases"][0]["steps"]
    for real, simulated in zip(counts, steps, strict=True):
        expected = (real.tokens, real.steps, real.row_steps, real.drafted, real.accepted)
        got = tuple(simulated[key] for key in ("tokens", "engine_steps", "row_steps", "drafted", "accepted"))
        assert expected[4] > 200
        if slots == 12:
            assert got == expected
        else:  # a new request gets the freed row there, the last one here: they learn in another order
            assert got == pytest.approx(expected, rel=0.03)
