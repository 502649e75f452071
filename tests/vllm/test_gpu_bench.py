"""`python -m benchmarks.gpu --part vllm` on a CPU: the command that a GPU gets, on real engines of both runners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.gpu.__main__ import app
from rolltree.bench import vllm_process
from tests.vllm.engines import FIRST_V2, VERSION
from tests.vllm.v2 import process

CASES = ("rolltree-v1", "rolltree-v2-coupled")


def run(folder: Path, model: str, *cases: str) -> list[dict[str, Any]]:
    arguments = ["--part", "vllm", "--device", "cpu", "--dtype", "float32", "--quick", "--out", str(folder), "--json"]
    arguments += ["--model", model, *(text for name in cases for text in ("--case", name))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["vllm"]
    assert json.loads((folder / "gpu.json").read_text())["vllm"] == rows
    return rows


@pytest.mark.skipif(VERSION < FIRST_V2, reason="the V2 runner lacks what drafting needs")
def test_both_runners_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_process, "work", process.work)
    rows = run(tmp_path, "demo", *CASES)
    assert [row["error"] for row in rows] == [None] * 3 * 2 * 2 * 2
    found = {(row["case"], row["temperature"], row["batch"], row["epoch"]): row for row in rows}
    assert {row["case"]: row["runner"] for row in rows} == {
        "none": "V2", "rolltree-v1": "V1", "rolltree-v2-coupled": "V2",
    }  # fmt: skip
    assert found["none", 0.0, 4, 2]["identical_rollouts"] == 4
    assert found["none", 1.0, 4, 1]["tokens_per_step"] == 1
    assert found["rolltree-v1", 1.0, 4, 2]["identical_rollouts"] is None, "it verifies by rejection"
    for name in CASES:
        assert found[name, 0.0, 4, 2]["identical_rollouts"] == 4
        assert found[name, 0.0, 4, 2]["tokens_per_step"] > 2, "the second epoch repeats the first"
        assert 0 < found[name, 0.0, 4, 2]["draft_share"] < 1
    assert found["rolltree-v2-coupled", 1.0, 4, 2]["identical_rollouts"] == 4
    for row in rows:
        assert row["decode_steps"] > 0
        assert 0 < row["step_milliseconds_median"] <= row["step_milliseconds_p99"]
        assert row["step_milliseconds_median"] * row["decode_steps"] < 2e3 * row["seconds"]


def test_a_made_model_repeats_itself_and_a_case_that_fails_is_a_row(tmp_path: Path) -> None:
    """Without what the tests put in triton's place the V2 runner does not start."""
    rows = run(tmp_path, "tiny", "rolltree-v1", "rolltree-v2-adaptive")
    failed = [row for row in rows if row["error"]]
    assert [row["case"] for row in failed] == ["rolltree-v2-adaptive"]
    ours = [row for row in rows if row["case"] == "rolltree-v1" and row["epoch"] == 2 and row["batch"] == 4]
    assert all(row["tokens_per_step"] > 1.3 for row in ours)
