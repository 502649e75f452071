"""The reward function of the CPU runs, in verl's form: `reward.custom_reward_function.path=pkg://tests.verl_on_cpu.reward`."""

from __future__ import annotations

from typing import Any

from rolltree.demo.task import Problem


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> float:
    """1.0 when the answer ends in `#` and the sum, else 0.0.

    `ground_truth` holds the numbers, separated by blanks.
    """
    numbers = tuple(int(word) for word in ground_truth.split())
    return Problem(numbers).reward(solution_str)
