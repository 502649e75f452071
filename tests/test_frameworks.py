"""Trainers that start vLLM themselves: one description, of which the page, `doctor --for` and the checks are made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rolltree.cli import doctor
from rolltree.cli.app import app
from rolltree.cli.frameworks import FRAMEWORKS, JSON, SWITCH
from rolltree.findings import Finding

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "frameworks.md"
CHECKS = ROOT / "tests" / "frameworks"


@pytest.mark.skipif(not PAGE.exists(), reason="the tests of the wheel run without the checkout")
class TestPage:
    def test_its_table_is_the_description(self) -> None:
        script = ROOT / "scripts" / "frameworks.py"
        assert subprocess.run([sys.executable, script, "--check"]).returncode == 0

    def test_each_has_a_section(self) -> None:
        titles = re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)
        assert titles == [one.name for one in FRAMEWORKS.values()]

    @pytest.mark.parametrize("key", FRAMEWORKS)
    def test_what_is_said_to_be_run_has_a_check(self, key: str) -> None:
        from tests.frameworks.test_only_read import REASONS

        assert bool(FRAMEWORKS[key].checked) == (CHECKS / f"test_{key.replace('-', '_')}.py").exists()
        assert bool(FRAMEWORKS[key].checked) == (key not in REASONS)

    def test_checked_versions_are_those_of_the_environment(self) -> None:
        pins = dict(
            re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements" / "frameworks.txt").read_text(), re.MULTILINE)
        )
        for one in FRAMEWORKS.values():
            if one.checked:
                assert pins[one.package.replace("_", "-")] == one.version


def test_lines_turn_on_what_vllm_knows() -> None:
    given = json.loads(JSON)
    module, _, name = given["model"].rpartition(".")
    assert hasattr(import_module(module), name)
    for one in FRAMEWORKS.values():
        assert re.search(rf"{SWITCH}\W.*16", one.line)
        assert not one.own or {given["model"], given["method"], "16"} <= set(re.findall(r"[\w.]+", one.own))


@pytest.fixture(name="vllm")
def fixture_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A vLLM whose probe answers what a test says; the trainer is there in the version that was read."""
    from rolltree.vllm import doctor as real

    answer: dict[str, Any] = {"drafts": 16, "missing": [], "shortcomings": ""}
    monkeypatch.setattr(real, "_smoke", lambda *_: answer)
    monkeypatch.setattr(real, "doctor_lines", lambda: [Finding("vLLM proposer", "ok", "0.32.0")])
    monkeypatch.setattr(metadata, "version", lambda name: FRAMEWORKS["skyrl"].version)
    monkeypatch.setattr(doctor, "PARTS", {})
    monkeypatch.setattr(doctor, "ADAPTERS", {})
    monkeypatch.setenv(SWITCH, "16")
    return answer


def asked(name: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = CliRunner().invoke(app, ["doctor", "--for", name, "--json"])
    checks = json.loads(done.stdout.splitlines()[-1])["checks"]
    return done.exit_code, {check["name"]: check for check in checks if check["part"] == name}


def test_a_switch_that_acts_is_good(vllm: dict[str, Any]) -> None:
    code, checks = asked("skyrl")
    assert (code, checks["SkyRL"]["state"], checks["switch"]["state"]) == (0, "ok", "ok")
    assert "drafts 16 tokens" in checks["switch"]["found"]


def test_one_that_is_not_set_is_named_with_the_lines(vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH)
    code, checks = asked("skyrl")
    assert (code, checks["switch"]["state"]) == (1, "missing")
    assert FRAMEWORKS["skyrl"].line in checks["switch"]["fix"]
    assert FRAMEWORKS["skyrl"].own in checks["switch"]["fix"]


def test_one_that_does_not_act_is_broken(vllm: dict[str, Any]) -> None:
    vllm.update(drafts=0, missing=["GPUModelRunner._update_states(scheduler_output)"])
    code, checks = asked("openrlhf")
    assert (code, checks["switch"]["state"], checks["vLLM hooks"]["state"]) == (1, "broken", "broken")
    assert "_update_states" in checks["vLLM hooks"]["found"]


@pytest.mark.parametrize(("version", "state"), [("9.9", "untested"), (None, "missing")])
def test_versions_are_told_apart(
    vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch, version: Any, state: str
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    code, checks = asked("openrlhf")
    assert checks["OpenRLHF"]["state"] == state
    assert code == int(version is None)


def test_one_that_was_only_read_says_so(vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: FRAMEWORKS["nemo-rl"].version)
    _, checks = asked("nemo-rl")
    assert (checks["NeMo-RL"]["state"], "no version was run" in checks["NeMo-RL"]["fix"]) == ("untested", True)


def test_nothing_is_said_of_trainers_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PARTS", {})
    monkeypatch.setattr(doctor, "ADAPTERS", {})
    done = CliRunner().invoke(app, ["doctor", "--json"])
    parts = {check["part"] for check in json.loads(done.stdout.splitlines()[-1])["checks"]}
    assert not parts & set(FRAMEWORKS)
