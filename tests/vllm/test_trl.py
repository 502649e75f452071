"""`rolltree.trl.attach` in real TRL, with vLLM in the processes of the trainer: two ranks, each with an engine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rolltree.runlog import steps
from tests.vllm.test_ranks import TORCHRUN, run
from tests.vllm.trl_training import PROMPTS, SAMPLES, STEPS

if find_spec("trl") is None:
    pytest.skip("TRL is not installed", allow_module_level=True)
RANKS = 2
CLOSE = 1e-3
"""Float32 of two engines: their log-probabilities differ by less than 1e-4."""


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trl")


@pytest.fixture(name="ranks", scope="module")
def fixture_ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank saw; one start for all tests."""
    seen = run("", folder, TORCHRUN, module="tests.vllm.trl_training")
    assert len(seen) == RANKS
    return seen


def lines(rank: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [line for line in rank["log"] if key in line]


def test_the_trainer_gets_what_its_policy_would_say(ranks: list[dict[str, Any]]) -> None:
    """Importance ratio 1 with drafts that were accepted, in training and evaluation, by the DAPO loss."""
    log = ranks[0]["log"]
    assert ranks[0]["loss"] == "dapo"
    for prefix, count in (("", STEPS), ("eval_", 2)):
        seen = lines(ranks[0], f"{prefix}rolltree/tokens")
        assert len(seen) == count
        for line in seen:
            assert line[f"{prefix}sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=CLOSE)
            assert line[f"{prefix}sampling/sampling_logp_difference/max"] < CLOSE
            assert line[f"{prefix}rolltree/accepted"] > 0
            assert line[f"{prefix}rolltree/errors"] == line[f"{prefix}rolltree/invalid_options"] == 0
    assert any(line.get("grad_norm", 0) > 0 for line in log)


def test_greedy_completions_are_the_policys_likeliest(ranks: list[dict[str, Any]]) -> None:
    """RLOO with top-k 1, from trees of another policy: no token that the trainer's own model would not have chosen."""
    for rank in ranks:
        assert len(rank["rloo"]["gaps"]) == 2 * SAMPLES
        assert max(rank["rloo"]["gaps"]) < CLOSE
        assert rank["rloo"]["accepted"] > 0
        assert lines({"log": rank["rloo"]["log"]}, "rolltree/tokens")


def test_versions_and_validations_are_marked(ranks: list[dict[str, Any]]) -> None:
    """The trainer's step with every request; what is generated while it evaluates is a validation."""
    for rank in ranks:
        assert {call["step"] for call in rank["calls"]} == set(range(STEPS + 1))
        assert {call["training"] for call in rank["calls"]} == {True, False}
        for call in rank["calls"]:
            assert call["version"] == call["step"]
            assert call.get("kind", "rollout") == ("rollout" if call["training"] else "validation")


def test_every_engine_has_all_rollouts_of_training_and_no_other(ranks: list[dict[str, Any]]) -> None:
    """Each rank generated half of them; the evaluations of both left nothing."""
    for rank in ranks:
        assert rank["stats"]["cache_rollouts"] == RANKS * STEPS * SAMPLES
        assert rank["stats"]["cache_prompts"] == PROMPTS
        assert rank["stats"]["tokens_validation"] > 0


def test_the_log_counts_both_ranks_and_divides_last(ranks: list[dict[str, Any]]) -> None:
    logged = lines(ranks[0], "rolltree/tokens")
    tokens = sum(line["rolltree/tokens"] for line in logged)
    evaluated = sum(line["eval_rolltree/tokens"] for line in lines(ranks[0], "eval_rolltree/tokens"))
    assert tokens + evaluated == sum(rank["stats"]["tokens"] for rank in ranks)
    assert evaluated == sum(rank["stats"]["tokens_validation"] for rank in ranks)
    for line in logged:
        assert line["rolltree/tokens_per_step"] == pytest.approx(line["rolltree/tokens"] / line["rolltree/row_steps"])
        assert line["rolltree/seconds"] > 0


def test_the_runs_folder_has_every_step_once(ranks: list[dict[str, Any]], folder: Path) -> None:
    """For `rolltree report`: the second `attach` replaced the first, and one rank alone writes."""
    rows = steps(folder / "run")
    logged = lines(ranks[0], "rolltree/tokens")
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row, line in zip(rows[:-1], logged, strict=False):  # the last has the tool loops as well
        assert row["sums"]["tokens"] == line["rolltree/tokens"]
        assert row["gauges"]["reward"] == line["reward"]
        assert row["gauges"]["tree_bytes"] == line["rolltree/cache_bytes"]
    assert len(steps(folder / "run", "eval")) == 2


def test_later_turns_of_a_tool_loop_use_the_first_prompts_trees(ranks: list[dict[str, Any]]) -> None:
    """Whichever rows go on, and though the ranks loop differently often; what they made is shared afterwards."""
    for rank, later in zip(ranks, (6, 3), strict=True):
        tools = rank["tools"]
        assert (tools["first_prompts"], tools["first_rollouts"]) == (2, 4)
        assert (tools["later_prompts"], tools["later_rollouts"]) == (0, later)
        assert (tools["shared_prompts"], tools["shared_rollouts"]) == (0, 4 + 9 - later)


def test_detached_the_trainer_is_as_before(ranks: list[dict[str, Any]]) -> None:
    assert [rank["left"] for rank in ranks] == [[False, False]] * RANKS
