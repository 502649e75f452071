"""A step comes from where it is known to stand; any other number is not one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolltree.replay.steps import StepSource, UnknownStepError, Where, whole


def find(
    record: dict[str, object], path: str = "/logs/run.jsonl", kind: str = "chat", wanted: str | None = None
) -> int:
    return StepSource(wanted).find(record, Where(Path(path), order=4), kind)[0]


@pytest.mark.parametrize(
    ("record", "path", "kind", "step"),
    [
        ({"step": 3}, "/a/9.jsonl", "verl", 3),  # the record outranks the name
        ({"global_step": 3.0}, "/a/r.jsonl", "chat", 3),
        ({"tail_version": 2, "head_version": 1, "task_id": 12}, "/rollout/2/12.jsonl", "chat", 2),  # AReaL
        ({"step": None}, "/a/step_7/train_rollouts.jsonl", "chat", 7),  # prime-rl
        ({}, "/a/token_exports/step_7/rank_3.jsonl", "masked", 7),
        ({}, "/a/global_step_40/x.jsonl", "chat", 40),
        ({}, "/a/12.jsonl", "verl", 12),
        ({}, "/a/12.jsonl.gz", "verl", 12),
        ({}, "/a/completions_00012.parquet", "chat", 12),
        ({}, "/a/global_step_12_train_rollouts.jsonl", "response", 12),
        ({}, "/a/step-12.jsonl.zst", "chat", 12),
        ({}, "/a/step_12_rank_3.jsonl", "chat", 12),
        ({}, "/a/step_12/step_12.jsonl", "chat", 12),
        ({"step": "12"}, "/a/r.jsonl", "chat", 12),
    ],
)
def test_known_places(record: dict[str, object], path: str, kind: str, step: int) -> None:
    assert find(record, path, kind) == step


@pytest.mark.parametrize(
    ("record", "path", "kind"),
    [
        ({"task_id": 12}, "/rollout/2/12.jsonl", "chat"),  # AReaL names files by task
        ({}, "/a/rank_3.jsonl", "chat"),
        ({}, "/a/rollouts_20261125_1830.jsonl", "chat"),
        ({}, "/a/1764000000.jsonl", "verl"),
        ({}, "/a/20261125.jsonl", "verl"),
        ({}, "/a/micro_step_3.jsonl", "chat"),
        ({}, "/a/qwen2.5-7b-v2.jsonl", "chat"),
        ({}, "/a/completions_00012.jsonl", "chat"),
        ({}, "/run-7/seed_3/x.jsonl", "chat"),
        ({"epoch": 1, "sample_idx": 2, "micro_step": 3}, "/a/r.jsonl", "chat"),
    ],
)
def test_other_numbers_are_not_steps(record: dict[str, object], path: str, kind: str) -> None:
    with pytest.raises(UnknownStepError, match="--step-from FIELD, file, folder or order"):
        find(record, path, kind)


@pytest.mark.parametrize(
    ("record", "path"),
    [({"step": 3, "policy_version": 2}, "/a/r.jsonl"), ({}, "/a/step_3/step_4.jsonl"), ({}, "/step_3/step_4/r.jsonl")],
)
def test_two_steps_are_none(record: dict[str, object], path: str) -> None:
    with pytest.raises(UnknownStepError, match=r"more than one step: . by .*--step-from"):
        find(record, path)
    if record:
        assert find(record, path, wanted="policy_version") == 2


@pytest.mark.parametrize(
    ("wanted", "path", "step"),
    [("order", "/a/b.jsonl", 4), ("file", "/a/rollouts-9.jsonl", 9), ("folder", "/a/17/3.jsonl", 17),
     ("folder", "/a/step_2/train/effective/t.jsonl", 2), ("trainer.step", "/a/b.jsonl", 8),
     ("version", "/a/b.jsonl", 5)],
)  # fmt: skip
def test_asked_for(wanted: str, path: str, step: int) -> None:
    assert find({"trainer": {"step": 8}, "version": 5, "step": 1}, path, wanted=wanted) == step


@pytest.mark.parametrize(
    ("wanted", "path"), [("file", "/a/r_3_of_4.jsonl"), ("folder", "/a/b/3.jsonl"), ("version", "/a/3.jsonl")]
)
def test_asked_for_and_not_there(wanted: str, path: str) -> None:
    with pytest.raises(UnknownStepError, match="--step-from"):
        find({"step": 1, "trainer": 3}, path, wanted=wanted)


@pytest.mark.parametrize(
    "value", [True, 1.5, float("nan"), float("inf"), 2**63, 10**400, "x", "1e3", [1], {}, None, -(2**60)]
)
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(UnknownStepError, match="not a whole number"):
        whole(value, "step")
