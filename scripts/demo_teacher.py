"""Worked solutions of the demo's task, which its model is trained on; see train_demo_model.py.

Invariant: every solution is spelled with the characters of `rolltree.demo.task.ALPHABET`.
"""

from __future__ import annotations

import random

from rolltree.demo.task import Problem

CONNECTORS = ("then", "next", "now", "so", "and", "ok")
CLOSINGS = ("answer", "total", "result")


def work_out(problem: Problem, rng: random.Random, slip: float = 0.0) -> str:
    """A worked solution: random operand order and wording; each digit is off by one with probability `slip`.

    A teacher that slips now and then teaches a model that solves the task only partly, and RL something to
    unlearn.
    """
    first, *rest = rng.sample(problem.numbers, len(problem.numbers))
    total = first
    lines: list[str] = []
    plain_start = rng.random() < 0.5
    for number in rest:
        lead = "" if plain_start and not lines else rng.choice(CONNECTORS) + " "
        digits, result = _add(total, number, rng, slip)
        lines.append(f"{lead}{total}+{number}: {digits} gives {result}")
        total = result
    return ". ".join([*lines, f"{rng.choice(CLOSINGS)} #{total}"])


def _add(left: int, right: int, rng: random.Random, slip: float) -> tuple[str, int]:
    """`left + right` digit by digit, lowest first, as `a+b+carry=sum` terms; and the value they lead to."""
    terms, value, carry = [], 0, 0
    places = max(len(str(left)), len(str(right)))
    for place in range(places):
        a, b = left // 10**place % 10, right // 10**place % 10
        total = a + b + carry
        if rng.random() < slip:
            total = max(0, total + rng.choice((-1, 1)))
        terms.append(f"{a}+{b}+{carry}={total}")
        value += total % 10 * 10**place
        carry = total // 10
    return ",".join(terms), value + carry * 10**places
