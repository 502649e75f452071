"""`rolltree verl-config`, versions and doctor where neither verl nor Ray is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rolltree.errors import InvalidInputError
from rolltree.verl import config_lines, doctor_lines
from rolltree.verl import doctor as doctor_module
from rolltree.verl.options import VerlOptions
from rolltree.verl.versions import TESTED, check_version, numbers

CLI = "from rolltree.cli import main; main()"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CLI, "verl-config", *arguments], capture_output=True, text=True)


def test_two_lines_turn_it_on_and_five_say_it_all() -> None:
    short = run("grpo").stdout.splitlines()
    assert short == [
        "trainer.v1.sampler.custom_sampler.path=pkg://rolltree.verl",
        "trainer.v1.sampler.custom_sampler.name=sampler",
    ]
    explicit = run("dapo", "--explicit", "--max-draft", "8").stdout.splitlines()
    assert explicit[:2] == short
    assert len(explicit) == 6, "five lines, and one for the option"
    assert "num_speculative_tokens:8" in explicit[2]


def test_json_is_the_last_line() -> None:
    document = json.loads(run("ppo", "--json", "--key-column", "id").stdout.splitlines()[-1])
    assert document["algorithm"] == "ppo"
    assert document["lines"][-1] == "+trainer.v1.sampler.sampler_kwargs.key_column=id"


def test_other_versions_are_named() -> None:
    refused = run("--verl-version", "0.8.0")
    assert refused.returncode == 2
    assert "0.9 or newer" in refused.stderr
    assert "not tested" in run("--verl-version", "0.10.0").stderr
    assert check_version(TESTED["verl"][0]) == ""
    assert numbers("0.9.1.dev3+cpu") == (0, 9, 1)


def test_unknown_algorithm_is_the_users_mistake() -> None:
    assert run("gropo").returncode == 2
    with pytest.raises(InvalidInputError, match="algorithm"):
        config_lines("gropo")


def test_options_that_differ_become_lines() -> None:
    options = VerlOptions(key_column="id", poll_seconds=0.5)
    assert config_lines(options=options)[2:] == [
        "+trainer.v1.sampler.sampler_kwargs.key_column=id",
        "+trainer.v1.sampler.sampler_kwargs.poll_seconds=0.5",
    ]


def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "installed", lambda name: None)
    assert [(line.state, line.fix) for line in doctor_lines()] == [("missing", "pip install 'rolltree[verl]'")]
    monkeypatch.setattr(doctor_module, "installed", lambda name: "0.8.1")
    assert doctor_lines()[0].state == "broken"
    monkeypatch.setattr(doctor_module, "installed", lambda name: {"verl": "0.9.7"}.get(name))
    states = {line.name: line.state for line in doctor_lines()}
    assert states["verl (verl)"] == "untested"
    assert states["ray (verl)"] == states["vllm (verl)"] == "missing"


def test_importing_the_package_loads_no_trainer() -> None:
    code = "import sys, rolltree.verl.router, rolltree.verl.lines, rolltree.verl.doctor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"verl", "ray", "torch", "vllm", "omegaconf"} & set(loaded)
