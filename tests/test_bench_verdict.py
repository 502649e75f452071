"""The sentence at the end of a bench on a user's own model: worth it or not, by which setting, and why."""

from __future__ import annotations

from typing import Any

import pytest

from rolltree.bench.verdict import judge


def cases(
    drafter: str, *seconds: float, batch: int = 8, tokens_per_step: float = 2.0, **more: Any
) -> list[dict[str, Any]]:
    return [
        {
            "batch": batch, "drafter": drafter, "epoch": epoch, "seconds": each, "tokens": 100,
            "tokens_per_step": tokens_per_step, "speedup": 10 / each, "error": None, **more,
        }
        for epoch, each in enumerate(seconds, 1)
    ]  # fmt: skip


PLAIN = cases("none", 10.0, 10.0, 10.0)
OURS = {"runner": "V1", "max_draft": 16}


def test_it_says_what_it_brings_after_the_first_epoch_and_in_it() -> None:
    found = judge(PLAIN + cases("rolltree", 9.0, 6.0, 4.0, **OURS))
    assert found.worth_it
    assert found.verdict == (
        "Worth it: with 16 draft tokens, 8 requests at once, the V1 model runner rolltree generates these rollouts "
        "2.00 times as fast as the engine alone from epoch 2 on (1.11 in epoch 1)."
    )
    assert found.best == {"drafter": "rolltree", "runner": "V1", "max_draft": 16, "batch": 8, "speedup": 2.0}


def test_seconds_count_by_token() -> None:
    """An engine that ended early with fewer tokens is not faster."""
    short = [case | {"tokens": 50} for case in cases("rolltree", 5.0, 5.0, **OURS)]
    found = judge(PLAIN + short)
    assert found.worth_it is False
    assert found.verdict.startswith("It makes no difference")


@pytest.mark.parametrize(
    ("tokens_per_step", "drafted", "why"),
    [
        (1.02, 3.0, "little was accepted, 1.02 tokens a step"),
        (1.0, 0.0, "bound by compute"),
        (2.5, 5.0, "2.50 tokens come in a step, but such steps take longer: try fewer requests at once"),
    ],
)
def test_it_says_why_not(tokens_per_step: float, drafted: float, why: str) -> None:
    slow = cases("rolltree", 12.0, 12.0, tokens_per_step=tokens_per_step, drafted_per_step=drafted, **OURS)
    found = judge(PLAIN + slow)
    assert found.worth_it is False
    assert found.verdict.startswith("Not worth it")
    assert why in found.verdict


def test_the_best_setting_is_chosen_and_a_faster_rival_named() -> None:
    many = cases("none", 10.0, 10.0, batch=64) + cases("rolltree", 9.0, 9.0, batch=64, **OURS)
    few = PLAIN + cases("rolltree", 9.0, 8.0, **OURS) + cases("rolltree", 9.0, 5.0, runner="V2", max_draft=16)
    found = judge(many + few + cases("suffix", 9.0, 4.0))
    assert found.best is not None
    assert (found.best["runner"], found.best["batch"], found.best["speedup"]) == ("V2", 8, 2.0)
    assert found.verdict.endswith("suffix is faster here: 2.50 times.")
    assert "faster here" not in judge(few + cases("suffix", 9.0, 4.95)).verdict


def test_one_epoch_says_that_it_is_one() -> None:
    assert "only siblings repeat" in judge(cases("none", 10.0) + cases("rolltree", 8.0, **OURS)).verdict


def test_what_failed_is_not_judged() -> None:
    gone = {"batch": 8, "drafter": "rolltree", "runner": "V2", "error": "no triton"}
    found = judge([*PLAIN, gone])
    assert found.worth_it is None
    assert found.best is None
    assert "no triton" in found.verdict
    assert judge([*PLAIN, gone, *cases("rolltree", 5.0, 5.0, **OURS)]).worth_it
    assert judge([]).worth_it is None
    assert judge(cases("rolltree", 5.0, 5.0, **OURS)).worth_it is None, "without the plain engine nothing is known"
