"""The workload of a large training, memory at its size in the replay, and what is worked out from measured figures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.doc_blocks import ROOT
from tests.replay_tools import random_rollouts

if not (ROOT / "benchmarks" / "scale").exists():
    pytest.skip("the tests of the wheel run without the checkout", allow_module_level=True)

from benchmarks.scale.model import Machine, Measured, Training, figures
from benchmarks.scale.run import WHOLE, Scale, _case
from benchmarks.scale.workload import SPREAD, Shape, Workload

SHAPE = Shape(prompts=12, samples=4, parts=2, step=6)


def recorded(seed):
    return random_rollouts(seed, prompts=3, samples=9, length=80)


def test_made_rollouts_repeat_as_the_recorded_ones_do():
    checkpoints = [recorded(0), recorded(1)]
    workload, texts = Workload(checkpoints, SHAPE), [{tuple(r.tokens.tolist()) for r in c} for c in checkpoints]
    for prompt in range(SHAPE.prompts):
        kinds = {}
        for epoch in range(3):
            for made in workload.rollouts(prompt, epoch):
                plain = made.tokens // SPREAD
                cuts = [tuple(plain[:n]) for n in range(1, len(plain))]
                assert any(a in texts[min(epoch, 1)] and tuple(plain[len(a) :]) in texts[min(epoch, 1)] for a in cuts)
                for token, old in zip(made.tokens.tolist(), plain.tolist(), strict=True):
                    assert kinds.setdefault(old, token) == token  # one new id for each old one, in all epochs
        assert len(set(kinds.values())) == len(kinds)


def test_prompts_of_one_recording_are_not_the_same_text():
    workload = Workload([random_rollouts(0, prompts=1, samples=4)], replace(SHAPE, parts=1))
    first, second = (workload.rollouts(prompt, 0) for prompt in (0, 1))
    assert {tuple(r.tokens // SPREAD) for r in first} == {tuple(r.tokens // SPREAD) for r in second}
    assert not {tuple(r.tokens.tolist()) for r in first} & {tuple(r.tokens.tolist()) for r in second}


def test_epochs_take_other_samples_and_the_same_seed_the_same_ones():
    workload = Workload([recorded(0)], SHAPE)
    epochs = [[tuple(r.tokens.tolist()) for r in workload.rollouts(3, epoch)] for epoch in range(2)]
    assert not set(epochs[0]) & set(epochs[1])
    again = Workload([recorded(0)], SHAPE).rollouts(3, 1)
    assert epochs[1] == [tuple(r.tokens.tolist()) for r in again]
    steps = list(workload.steps(0))
    assert [len(step) for step in steps] == [24, 24]
    assert {r.prompt_id for step in steps for r in step} == {f"p{p}" for p in range(12)}


def test_a_capacity_with_a_store_drafts_as_all_in_memory_does(tmp_path):
    lines = [
        {"prompt_id": r.prompt_id, "step": 0, "sample": r.sample, "prompt_token_ids": r.prompt.tolist(),
         "token_ids": r.tokens.tolist()}
        for r in recorded(0)
    ]  # fmt: skip
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = 120_000
    scale = Scale(
        files=(tmp_path / "traces.jsonl",), shape=SHAPE, epochs=3, capacity=own * WHOLE // SHAPE.prompts,
        slots=4, store=str(tmp_path / "stores"),
    )  # fmt: skip
    assert scale.bytes == pytest.approx(own, abs=1)
    whole, kept, lost = (_case(scale, name) for name in ("all in memory", "store", "no store"))
    assert whole["evicted_prompts"] == whole["rebuilt_prompts"] == lost["rebuilt_prompts"] == 0
    assert min(kept["evicted_prompts"], kept["rebuilt_prompts"], lost["evicted_prompts"]) > 5
    assert kept["tokens"] == whole["tokens"] == lost["tokens"]
    assert kept["row_steps"] == pytest.approx(whole["row_steps"], rel=0.005)
    assert lost["row_steps"] > 1.03 * whole["row_steps"]
    assert kept["store_bytes"] == sum(file.stat().st_size for file in (tmp_path / "stores").rglob("*.db"))


SPEED = {
    "tokens_per_step": 2.0, "drafted_per_step": 4.0, "draft_microseconds_per_step": 10.0,
    "update_microseconds_per_token": 3.0,
}  # fmt: skip
FIGURES = Measured(speeds={128: SPEED}, tree_bytes=50.0, store_bytes=1.0, append=1e6, warm=2.0, cold=1.5)


def test_a_run_is_worked_out_from_what_was_measured():
    found = figures(FIGURES, 64, 1000, Training(), Machine())
    rows, tokens = found["rows"], found["tokens_a_second"]
    assert rows == 128
    assert found["drafting_cores"] == pytest.approx(tokens / 2 * 10e-6)
    assert found["indexing_cores"] == pytest.approx(tokens * 3e-6)
    assert found["epoch_tree_bytes"] == 50 * found["epoch_store_bytes"] == 17_000 * 16 * 1000 * 50
    assert found["routed_bytes"] == 512 / 64 * 64 * 1000 * 50
    assert found["unrouted_bytes"] == 128 * 64 * 1000 * 50  # as many prompts as requests
    assert found["unrouted_known"] == 1 / 8
    assert found["rebuilding_cores"] == pytest.approx(tokens * 64 / 16 / 1e6)
    assert found["shared_in_cores"] == pytest.approx(tokens * 56 / 1e6)  # of the 7 other nodes' 56 GPUs
    assert found["node_store_bytes_a_second"] == pytest.approx(8 * tokens)
    assert found["step_seconds"] == pytest.approx(512 * 16 * 1000 / (64 * tokens))
    one = figures(FIGURES, 8, 1000, Training(), Machine())
    assert one["rows"] == 256
    assert one["shared_in_bytes_a_second"] == 0


def test_the_page_is_that_of_the_measurements():
    command = [sys.executable, "-m", "benchmarks.scale", "model", "--check"]
    assert subprocess.run(command, cwd=Path(ROOT)).returncode == 0


def test_ids_stay_within_a_vocabulary_three_times_as_large():
    most = max(int(np.max(r.tokens)) for r in recorded(0))
    made = Workload([recorded(0)], SHAPE).rollouts(0, 0)
    assert max(int(r.tokens.max()) for r in made) < SPREAD * (most + 1)
