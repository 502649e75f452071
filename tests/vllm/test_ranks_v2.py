"""Ranks of vLLM's V2 runner: all verify what the first one drafted, whoever schedules, whatever fails on one of them.

The engines run in processes of their own (see ranks_v2.py), one start for all tests of an executor.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.vllm.engines import FIRST_V2, VERSION
from tests.vllm.test_ranks import TORCHRUN, run

pytestmark = pytest.mark.skipif(VERSION < FIRST_V2, reason="the V2 runner of this vLLM lacks what drafting needs")
MODULE = "tests.vllm.ranks_v2"
FAILURES = ("trees", "begin", "counters", "read")


@pytest.fixture(name="ranks", scope="module")
def fixture_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two ranks under torchrun, each with its own scheduler."""
    seen = run("external", tmp_path_factory.mktemp("external"), TORCHRUN, module=MODULE)
    assert len(seen) == 2
    return seen


def test_workers_of_one_scheduler_verify_what_the_first_one_drafted(tmp_path: Any) -> None:
    """Drafts and their lengths go from it to the others; coupled, so that seeded samples are those without drafts."""
    (seen,) = run("mp", tmp_path, [], module=MODULE)
    assert seen["texts"] == [seen["right"]] * 2
    assert seen["sampled"] == [seen["sampled_right"]] * 2
    assert seen["sampled_right"] != seen["right"]
    assert seen["stats"]["accepted"] > 400
    assert seen["stats"]["errors"] == 0
    assert seen["ranks_that_draft"] == [True, False]
    first, second = seen["lengths"]
    assert first == second  # both ranks cut alike, in every step, and all rows of it
    assert {length for step in first for length in step} <= {1, 9}
    assert all(len(step) == 1 for step in first)
    assert [9] in first


def test_ranks_that_schedule_alone_keep_the_text(ranks: list[dict[str, Any]]) -> None:
    """More requests than places and little memory: they wait, are preempted and come back, on both ranks alike."""
    right = ranks[0]["right"]
    for rank in ranks:
        assert rank["right"] == right
        assert rank["texts"] == [right] * 2
        assert rank["preemptions"] > 0
    assert ranks[0]["stats"]["accepted"] > 200
    assert ranks[0]["stats"]["errors"] == 0
    assert ranks[1]["stats"]["drafted"] == 0  # it verifies what the first one drafts


def test_seeded_samples_are_the_same_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """By vLLM's standard verification, whose samples depend on the drafts."""
    assert ranks[0]["sampled"] == ranks[1]["sampled"]
    assert ranks[0]["sampled"][0] != ranks[0]["right"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", ["paused", "other drafts", *(f"failed in the {place}" for place in FAILURES)])
def test_a_fault_on_one_rank_neither_hangs_nor_changes_text(ranks: list[dict[str, Any]], fault: str, rank: int) -> None:
    """What comes between the steps' collectives may fail on one rank alone."""
    for seen in ranks:
        assert seen[f"{fault} {rank}"]["texts"] == [seen["right"]] * 2
    drafting = ranks[0][f"{fault} {rank}"]
    if rank == 0 and fault.startswith("failed"):
        assert drafting["meanwhile"]["errors"] == 1  # logged, counted
    else:
        assert drafting["meanwhile"]["errors"] == 0
    assert (drafting["meanwhile"]["drafted"] == 0) == (rank == 0 and fault == "paused")
    assert drafting["after"]["accepted"] > 20
    assert drafting["after"]["errors"] == 0
