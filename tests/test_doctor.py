from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata, util
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rolltree.cli import doctor
from rolltree.cli.app import app
from rolltree.findings import Finding


def run(*arguments: str) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["doctor", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def found(document: dict, name: str) -> dict:
    return next(check for check in document["checks"] if check["name"].startswith(name))


def test_it_looks_without_loading_frameworks() -> None:
    code = (
        "import sys; from rolltree.cli import main\ntry: main()\n"
        "finally: assert not {'torch', 'vllm', 'verl', 'trl'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code, "doctor", "--json"], capture_output=True, text=True)
    assert "loaded" not in done.stderr, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["ok"] == (done.returncode == 0)
    assert {"core", "engine", "trl", "report", "peer", "vllm", "verl"} <= {c["part"] for c in document["checks"]}


@pytest.mark.parametrize("part", ["engine", "store", "trl"])
def test_a_part_is_proved_by_running_it(part: str) -> None:
    for package in doctor.PARTS[part].packages:
        pytest.importorskip(package.module or package.name)
    code, document = run("--for", part)
    assert (code, document["ok"], document["asked"]) == (0, True, [part])
    proof = {"engine": "built-in engine", "store": "durable store", "trl": "TRL adapter"}[part]
    assert found(document, proof)["state"] == "ok"
    if part == "engine":
        assert "identical" in found(document, proof)["found"]


def test_what_is_asked_for_and_missing_is_a_failure(monkeypatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)))
    code, document = run()
    assert (code, document["ok"]) == (0, True)  # nothing is broken, nothing was asked for
    for part in ("trl", "vllm", "peer"):
        code, document = run("--for", part)
        assert (code, document["ok"]) == (1, False)
    assert found(document, "arctic-inference")["fix"] == "make bench-peer (in a checkout)"


@pytest.mark.parametrize(
    ("version", "state", "fix"),
    [
        ("1.9.3", "broken", "1.10 or newer"),
        ("1.16.0", "ok", ""),
        ("1.99.0", "untested", "tested with 1.14, 1.16"),
        ("2.0.dev1", "untested", "tested with"),
    ],
)
def test_versions_are_judged(monkeypatch, version: str, state: str, fix: str) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: version)
    package = next(p for p in doctor.PARTS["trl"].packages if p.name == "trl")
    check = doctor._package(package, doctor.PARTS["trl"])
    assert check.state == state
    assert fix in check.fix


def test_adapters_bring_their_own_checks(monkeypatch) -> None:
    ran = []
    adapter = SimpleNamespace(
        doctor_lines=lambda: [Finding("vllm", "ok", "0.32.0")],
        prove_lines=lambda: ran.append(1) or [Finding("drafts in vLLM", "broken", "none came", "set X")],
    )
    monkeypatch.setattr(doctor, "import_module", lambda name: adapter)
    assert run()[0] == 0
    assert not ran  # looking runs nothing
    code, document = run("--for", "vllm")
    assert (code, len(ran)) == (1, 1)
    assert found(document, "drafts in vLLM") == {
        "name": "drafts in vLLM", "state": "broken", "found": "none came", "fix": "set X", "part": "vllm",
    }  # fmt: skip


def test_a_check_that_raises_is_a_finding(monkeypatch) -> None:
    adapter = SimpleNamespace(doctor_lines=lambda: 1 / 0)
    monkeypatch.setattr(doctor, "import_module", lambda name: adapter)
    code, document = run()
    assert code == 1
    assert "ZeroDivisionError" in found(document, "vllm")["found"]


def test_an_unknown_part_is_a_mistake() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from rolltree.cli import main; main()", "doctor", "--for", "magic"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "out of store, engine, trl" in done.stderr
