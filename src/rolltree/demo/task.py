"""The demo's task: sums of two-digit numbers, worked out digit by digit with written carries.

A problem is a handful of numbers, its prompt `sum 47 8 93`, its answer a text that adds them one after the
other and ends in `#148`. The reward is 1 if the number behind the last `#` is the sum, else 0: nothing else
is judged, so the policy is free in the order of the operands and in its words. That freedom is what makes
rollouts of one prompt branch; the arithmetic in between is what they share.

This file knows nothing of models or tokenizers. Invariant: every prompt is spelled with the characters of `ALPHABET`,
one token each; so are the worked solutions that the shipped model learned from (scripts/demo_teacher.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

ALPHABET = "0123456789 +=:,.#\nabcdefghijklmnopqrstuvwxyz"
OPERANDS = (3, 4)
LARGEST = 99
_ANSWER = re.compile(r"#(\d+)$")


@dataclass(frozen=True, slots=True)
class Problem:
    """Add these positive integers."""

    numbers: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The question as the model sees it; the newline ends it."""
        return "sum " + " ".join(map(str, self.numbers)) + "\n"

    def reward(self, completion: str) -> float:
        """1.0 if `completion` ends in `#` and the right sum, else 0.0."""
        answer = _ANSWER.search(completion.strip())
        return float(answer is not None and int(answer.group(1)) == sum(self.numbers))


def sample_problem(rng: random.Random, operands: Sequence[int] = OPERANDS) -> Problem:
    """A random problem with one of the given numbers of operands, each uniform in 1..99."""
    return Problem(tuple(rng.randint(1, LARGEST) for _ in range(rng.choice(operands))))


def sample_problems(count: int, seed: int, operands: Sequence[int] = OPERANDS) -> list[Problem]:
    """`count` distinct problems; same seed, same list, and a longer list starts with the shorter."""
    rng = random.Random(seed)
    found: dict[Problem, None] = {}
    while len(found) < count:
        found.setdefault(sample_problem(rng, operands))
    return list(found)
