"""The worked solutions that the demo's model was trained on."""

import random
from collections import Counter

import pytest

from rolltree.demo.task import ALPHABET, Problem, sample_problem

teacher = pytest.importorskip("scripts.demo_teacher", reason="the tests of the wheel run without the checkout")
work_out = teacher.work_out


@pytest.fixture
def rng():
    return random.Random(0)


def test_careful_solutions_are_always_right(rng):
    for _ in range(500):
        problem = sample_problem(rng)
        assert problem.reward(work_out(problem, rng)) == 1.0


def test_every_term_of_a_careful_solution_is_true(rng):
    for _ in range(200):
        for term in work_out(sample_problem(rng), rng).replace(":", " ").replace(",", " ").split():
            if "=" in term:
                left, right = term.split("=")
                assert sum(map(int, left.split("+"))) == int(right)


def test_slips_break_some_solutions_but_not_all(rng):
    rewards = Counter(p.reward(work_out(p, rng, slip=0.1)) for p in (sample_problem(rng) for _ in range(500)))
    assert 100 < rewards[0.0] < 400


def test_one_prompt_has_many_solutions_of_about_the_same_length(rng):
    texts = [work_out(Problem((12, 34, 56, 78)), rng) for _ in range(64)]
    assert len(set(texts)) > 55
    assert all(95 < len(text) < 160 for text in texts)


def test_the_alphabet_spells_everything(rng):
    for _ in range(200):
        problem = sample_problem(rng)
        assert set(problem.prompt + work_out(problem, rng)) <= set(ALPHABET)
