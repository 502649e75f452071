"""The run-ahead benchmark end to end, small: all modes give the same rollouts, and the numbers add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.runahead.__main__ import app
from benchmarks.runahead.engine import Policy, Regime, run_ahead
from rolltree import CostModel
from rolltree.errors import InvalidInputError
from rolltree.runahead import RunAheadConfig
from tests.engine_tools import prompts, tiny_model

torch.set_num_threads(1)


def policy() -> Policy:
    model = tiny_model(vocab=23)
    goal = {name: weight.detach() + 0.01 for name, weight in model.named_parameters()}
    return Policy(
        name="tiny", model=model, prompts=prompts(40), max_tokens=20, stop_token_ids=(3,), goal=goal, drift=0.1
    )


def test_all_modes_give_the_same_rollouts_while_the_policy_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.runahead.engine.TAIL_TOKENS", 60)
    made = policy()
    before = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
    eager = RunAheadConfig(budget_share=5, max_slowdown=9, holdout=0)
    cost = CostModel(base=1e-3, token=1e-7)  # rows next to free: run-ahead pays
    document = run_ahead(
        made, [Regime(slots=8, tail="long", samples=4)], steps=3, repeats=1, config=eager, cost=cost, clock=None
    )
    cases = {case["mode"]: case for case in document["cases"]}  # type: ignore[attr-defined]
    assert list(cases) == ["cold", "none", "ahead", "ahead-noise", "forced", "forced-noise", "history"]
    assert all(case["identical_rollouts"] for case in cases.values())
    assert cases["none"]["tokens_per_step"] == 1
    assert cases["cold"]["speedup_over_cold"] == 1
    assert len({case["real_tokens"] for case in cases.values()}) == 1
    for name in ("ahead", "ahead-noise", "forced", "forced-noise"):
        assert 0 < cases[name]["slack_used"] <= 1
        assert cases[name]["tokens"] > 0
    for name, weight in made.model.named_parameters():
        assert torch.equal(weight, before[name])


def test_unknown_modes_are_named() -> None:
    with pytest.raises(InvalidInputError, match="--mode"):
        run_ahead(policy(), [], modes=["fast"])


def test_the_command_writes_its_document(tmp_path: Path) -> None:
    arguments = ["run", "--slots", "8", "--tail", "natural", "--steps", "2", "--repeats", "1"]
    ran = CliRunner().invoke(app, [*arguments, "--json", "--out", str(tmp_path / "out.json")])
    assert ran.exit_code == 0
    document = json.loads(ran.stdout.strip().splitlines()[-1])
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert {case["mode"] for case in document["cases"]} >= {"cold", "ahead", "history"}
    refused = CliRunner().invoke(app, ["run", "--out", str(tmp_path)])
    assert "--out" in str(refused.exception)
    refused = CliRunner().invoke(app, ["run", "--tail", "heavy"])
    assert isinstance(refused.exception, InvalidInputError)
