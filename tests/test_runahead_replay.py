"""Run-ahead in the simulated engine: real rollouts come first, the modes agree, nothing depends on the clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.runahead.__main__ import app
from benchmarks.runahead.replay import Shape, replay_run_ahead
from rolltree.bench.workload import markov
from rolltree.errors import InvalidInputError
from rolltree.replay.profiles import Roofline, load_profile
from rolltree.replay.records import Rollout
from rolltree.runahead import RunAheadConfig

EAGER = RunAheadConfig(budget_share=5, holdout=0, max_slowdown=1, samples=4)
FREE = Roofline(name="free-rows", parameters=7e9, kv_bytes=1.0)
"""Rows cost nothing below the knee."""


def recording(prompts: int = 12, samples: int = 8) -> list[Rollout]:
    """Rollouts of a source with repeats, lengths with a tail."""
    rng = np.random.default_rng(0)
    made = []
    for p, group in enumerate(markov(prompts, samples, 400)):
        for s, tokens in enumerate([*group.history, *group.now][:samples]):
            length = int(min(400, 30 + 60 * rng.pareto(1.5)))
            made.append(Rollout(prompt_id=f"p{p}", prompt=group.prompt, tokens=tokens[:length], step=0, sample=s))
    return made


def cases(profile: object, **config: object) -> dict[str, dict[str, float]]:
    shape = Shape(prompts=3, samples=4)
    document = replay_run_ahead(recording(), recording(), [profile], [shape], seeds=1, **config)  # type: ignore[arg-type, list-item]
    return {case["mode"]: case for case in document["cases"]}  # type: ignore[attr-defined]


def test_modes_generate_the_same_and_free_rows_pay() -> None:
    found = cases(FREE, config=EAGER)
    assert list(found) == ["none", "cold", "ahead", "forced", "history"]
    assert len({case["tokens"] for case in found.values()}) == 1
    ahead = found["ahead"]
    assert ahead["steps"] == 4
    assert ahead["launched"] > 10
    assert 0 < ahead["slack_used"] <= 1
    assert ahead["tokens_per_step"] > found["cold"]["tokens_per_step"]
    assert ahead["seconds"] < found["cold"]["seconds"]
    assert ahead["prompts_used"] <= 9  # the first step's prompts could not be known
    assert found["none"]["tokens_per_step"] == 1
    assert cases(FREE, config=EAGER) == found


def test_expensive_rows_are_left_alone_and_cost_nothing() -> None:
    found = cases(load_profile("cpu-2core"))
    assert found["ahead"]["launched"] == 0
    assert found["ahead"]["seconds"] == found["cold"]["seconds"]
    assert found["forced"]["seconds"] > found["cold"]["seconds"]


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="--prompts"):
        replay_run_ahead(recording(3), [], [FREE], [Shape(prompts=2, samples=4)])


def test_the_command_reads_recordings(tmp_path: Path) -> None:
    lines = [
        {"prompt_id": r.prompt_id, "step": 0, "sample": r.sample, "prompt_token_ids": r.prompt.tolist()}
        | {"token_ids": r.tokens.tolist()}
        for r in recording(6)
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["replay", str(trace), "--cost", "h100-7b", "--seeds", "1", "--json"]
    ran = CliRunner().invoke(app, [*arguments, "--shape", "3x4"])
    assert ran.exit_code == 0
    document = json.loads(ran.stdout.strip().splitlines()[-1])
    assert [case["mode"] for case in document["cases"]] == ["none", "cold", "ahead", "forced"]
    refused = CliRunner().invoke(app, [*arguments, "--shape", "3"])
    assert isinstance(refused.exception, InvalidInputError)
    refused = CliRunner().invoke(app, [*arguments, "--out", str(trace)])
    assert "another file than the input" in str(refused.exception)
