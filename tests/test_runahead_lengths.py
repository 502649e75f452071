from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolltree.runahead import lengths
from rolltree.runahead.lengths import LengthEstimator


def remaining(estimator: LengthEstimator, prompt: object, length: int, limit: int = 10**6) -> float:
    return float(estimator.remaining([prompt], np.array([length]), np.array([limit]))[0])


def test_a_known_prompt_is_judged_by_its_own_lengths() -> None:
    estimator = LengthEstimator()
    for _ in range(30):
        estimator.add("short", 100)
        estimator.add("long", 1000)
    assert remaining(estimator, "short", 50) < 100 < 800 < remaining(estimator, "long", 50)
    assert remaining(estimator, "long", 900) < 0.3 * remaining(estimator, "long", 50)


def test_an_unknown_prompt_has_the_mean_residual_life_of_all() -> None:
    estimator, rng = LengthEstimator(), np.random.default_rng(0)
    seen = rng.lognormal(6, 0.8, 3000).astype(int)
    for i, length in enumerate(seen):
        estimator.add(i, int(length))
    for now in (0, 200, 800, 2000):
        true = (seen[seen > now] - now).mean()
        assert remaining(estimator, "new", now) == pytest.approx(true, rel=0.15)


def test_a_heavy_tail_expects_more_the_longer_it_runs() -> None:
    estimator, rng = LengthEstimator(), np.random.default_rng(0)
    for i, length in enumerate((200 * (1 + rng.pareto(2.5, 4000))).astype(int)):
        estimator.add(i, int(length))
    assert remaining(estimator, "new", 1500) > 1.5 * remaining(estimator, "new", 300)


def test_longer_than_all_before_and_nothing_before() -> None:
    estimator = LengthEstimator()
    assert remaining(estimator, "a", 10) == 246
    estimator.add("a", 50)
    assert remaining(estimator, "a", 1000) == 500
    assert remaining(estimator, "a", 1000, limit=1010) == 10


def test_old_prompts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "PROMPTS", 3)
    estimator = LengthEstimator()
    for prompt in "abcad":
        estimator.add(prompt, 5)
    assert list(estimator._own) == ["c", "a", "d"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1 << 45)), max_size=50), st.integers(0, 10**6))
def test_estimates_are_positive_and_within_the_limit(added: list[tuple[str, int]], now: int) -> None:
    estimator = LengthEstimator()
    for prompt, length in added:
        estimator.add(prompt, length)
    assert 1 <= remaining(estimator, "a", now, now + 100) <= 100
