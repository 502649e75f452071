"""Samples against enumerated probabilities: every rule, chains and trees, every sampling feature.

The seeds are fixed. Had they been drawn at random, a correct sampler would fail this file with probability below
1e-3 (Bonferroni over all p-values). The last part plants biases of 1 % and known mistakes, and sees the same test
refuse them.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from rolltree.engine.config import Rule
from rolltree.sampling import SamplingParams, noise, verification
from tests import toy_policy
from tests.toy_policy import CHAIN, TREE, ToyPolicy, first_two, p_values

DRAWS = 300_000
FAMILY = 1e-3
SETTINGS = {
    "plain": SamplingParams(),
    "temperature": SamplingParams(temperature=0.7),
    "top_k": SamplingParams(top_k=3),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.15),
    "combined": SamplingParams(temperature=1.4, top_k=6, top_p=0.9, min_p=0.05),
}
TABLES = ("peaked", "ties", "flat", "wide")
CASES = [("peaked", setting) for setting in SETTINGS]
CASES += [("ties", "plain"), ("ties", "top_k"), ("ties", "top_p"), ("flat", "combined"), ("wide", "combined")]
COUPLED, ONE_HOT = get_args(Rule)  # what the engine lets one choose
REJECTION = [(ONE_HOT, CHAIN), (ONE_HOT, TREE)]
WAYS = [(COUPLED, CHAIN), *REJECTION]  # coupled trees: the same output as chains, tested below
TESTS = 2 * len(CASES) * len(WAYS)
ALPHA = FAMILY / TESTS


def seeds(draws: int = DRAWS) -> np.ndarray:
    """Consecutive seeds: the hardest case for the generator."""
    return np.arange(draws, dtype=np.uint64) + np.uint64(12345)


def table(name: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(TABLES.index(name))
    vocab = 50 if name == "wide" else 8
    logits = torch.randn(vocab + 1, vocab, generator=random)
    if name == "peaked":
        logits.scatter_(1, logits.argmax(1, keepdim=True), 3.5)
    elif name == "ties":
        logits = (logits * 1.5).round()
        logits[:, 2] = logits[:, 5] = 1.0
        logits[:, 6] = float("-inf")
    elif name == "flat":
        logits = torch.zeros_like(logits)
    return logits


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rule", "shape"), WAYS)
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_samples_follow_the_policy(name, setting, rule, shape):
    policy = ToyPolicy(table(name), SETTINGS[setting])
    assert min(p_values(policy, rule, shape, seeds(DRAWS // 4 if name == "wide" else DRAWS))) > ALPHA


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_coupled_output_is_the_same_whatever_is_drafted(name, setting):
    policy = ToyPolicy(table(name), SETTINGS[setting])
    chain, tree = (first_two(policy, COUPLED, shape, seeds(20_000)) for shape in (CHAIN, TREE))
    np.testing.assert_array_equal(chain, tree)


# Planted mistakes: each must be refused by the very statistic and level that the correct rules pass.

PEAKED = ToyPolicy(table("peaked"), SETTINGS["plain"])


def refused(rule, shape, policy=PEAKED):
    return min(p_values(policy, rule, shape, seeds())) < ALPHA


@pytest.mark.parametrize(("rule", "shape"), REJECTION)
def test_refuses_acceptance_one_percent_too_high(rule, shape, monkeypatch):
    monkeypatch.setattr(verification, "uniform", lambda keys, tokens: noise.uniform(keys, tokens) / 1.01)
    assert refused(rule, shape)


@pytest.mark.parametrize(("rule", "shape"), REJECTION)
def test_refuses_sampling_p_instead_of_the_residual(rule, shape, monkeypatch):
    draw = verification._draw
    monkeypatch.setattr(verification, "_draw", lambda rest, p, *where: draw(p, p, *where))
    assert refused(rule, shape)


def test_refuses_siblings_tried_against_p_not_renormalised(monkeypatch):
    monkeypatch.setattr(verification, "_tried", lambda p, *tree: (p, torch.zeros_like(p)))
    assert refused(ONE_HOT, TREE)


@pytest.mark.parametrize("shape", [CHAIN, TREE])
def test_refuses_noise_keyed_without_position(shape, monkeypatch):
    monkeypatch.setattr(toy_policy, "row_keys", lambda seeds, positions: noise.row_keys(seeds, positions * 0))
    assert refused(COUPLED, shape)


@pytest.mark.parametrize(("rule", "shape"), WAYS)
def test_refuses_a_temperature_that_is_one_percent_off(rule, shape):
    policy = ToyPolicy(table("peaked"), SamplingParams(temperature=0.99))
    expected = ToyPolicy(table("peaked"), SETTINGS["plain"])
    vars(policy).update(first=expected.first, joint=expected.joint)
    assert refused(rule, shape, policy)
