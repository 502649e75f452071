from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rolltree import CostModel
from rolltree.bench.demo_workload import demo_workload
from rolltree.bench.engine import DRAFTERS, run_engine
from rolltree.bench.subjects import peer_installed
from rolltree.cli.app import app
from rolltree.errors import InvalidInputError
from rolltree.replay.drafters.text import NgramDrafter


def test_every_drafter_gives_the_same_rollouts() -> None:
    torch.set_num_threads(1)
    names = [name for name in DRAFTERS if name != "suffix" or peer_installed()]
    cost = CostModel(base=2e-3, token=2e-5)
    document = run_engine(
        demo_workload(prompts=2, samples=2, max_tokens=24), batches=[4], drafters=names, epochs=2, repeats=1,
        rollouts=4, cost=cost,
    )  # fmt: skip
    cases = document["cases"]
    assert {(c["drafter"], c["epoch"]) for c in cases} == {(name, e) for name in names for e in (1, 2)}
    assert all(c["identical_rollouts"] for c in cases if c["drafter"] != "generate")
    by = {(c["drafter"], c["epoch"]): c for c in cases}
    assert by["none", 2]["tokens_per_step"] == 1.0
    assert by["rolltree", 2]["tokens_per_step"] > by["rolltree", 1]["tokens_per_step"] > 1


def test_the_rollouts_of_a_training_warm_the_caches() -> None:
    pytest.importorskip("trl")
    torch.set_num_threads(1)
    workload = demo_workload(prompts=8, samples=8, max_tokens=24, train_epochs=1)
    assert len(workload.remembered) == 64
    assert {r.version for r in workload.remembered} == {0}
    cost = CostModel(base=2e-3, token=2e-5)
    document = run_engine(workload, batches=[4], drafters=["rolltree"], epochs=1, repeats=1, rollouts=4, cost=cost)
    warm = next(c for c in document["cases"] if c["drafter"] == "rolltree")
    cold = run_engine(
        replace(workload, remembered=[]), batches=[4], drafters=["rolltree"], epochs=1, repeats=1, rollouts=4, cost=cost
    )["cases"][1]
    assert warm["remembered_rollouts"] == 64
    assert warm["tokens"] == cold["tokens"]
    assert warm["tokens_per_step"] > cold["tokens_per_step"]


def test_ctrl_c_keeps_what_is_done() -> None:
    torch.set_num_threads(1)

    def progress(what: str) -> None:
        if what.endswith("epoch 2 of 3"):
            raise KeyboardInterrupt

    document = run_engine(
        demo_workload(prompts=1, samples=2, max_tokens=8), batches=[2, 4], drafters=["rolltree"], epochs=3, repeats=1,
        rollouts=2, cost=CostModel(base=2e-3, token=2e-5), progress=progress,
    )  # fmt: skip
    assert document["partial"]
    assert [(c["drafter"], c["epoch"], c["batch"]) for c in document["cases"]] == [("none", 1, 2), ("rolltree", 1, 2)]


def test_unknown_drafters_are_named() -> None:
    with pytest.raises(InvalidInputError, match="--drafter = \\['magic'\\]"):
        run_engine(demo_workload(prompts=1), batches=[1], drafters=["magic"])


def test_ngram_copies_the_latest_continuation() -> None:
    drafter = NgramDrafter(max_draft=16)
    handle = drafter.open([1, 2, 3, 4, 1, 2, 9, 9, 1, 2])
    batch = drafter.draft(np.array([handle]), np.array([2], np.int32))
    assert batch.tokens[0, : batch.lengths[0]].tolist() == [9, 9]
    drafter.advance(np.array([handle]), np.array([77], np.int32), np.array([0, 1], np.int32))
    assert drafter.draft(np.array([handle]), np.array([2], np.int32)).lengths[0] == 0


def test_the_measured_cost_is_kept_for_replays(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    arguments = ["bench", "engine", "--batch", "2", "--batch", "4", "--rollouts", "4", "--drafter", "none"]
    ran = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--repeats", "1", "--save-cost", str(path), "--json"])
    assert ran.exit_code == 0, ran.output
    costs = json.loads(ran.stdout.strip().splitlines()[-1])["costs"]
    assert CostModel.load(path) == CostModel(**costs["4"])
    refused = CliRunner().invoke(app, ["bench", "engine", "--engine", "vllm", "--save-cost", str(path)])
    assert isinstance(refused.exception, InvalidInputError)
