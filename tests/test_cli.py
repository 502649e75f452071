from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def rolltree(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from rolltree.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_lists_the_commands_and_loads_no_torch() -> None:
    done = rolltree("--help")
    assert done.returncode == 0
    for command in ("demo", "bench", "doctor"):
        assert command in done.stdout
    code = "import sys, rolltree.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", [["demo"], ["bench", "index"], ["bench", "draft"], ["bench", "engine"], ["doctor"]])
def test_every_command_has_an_example(command: list[str]) -> None:
    done = rolltree(*command, "--help")
    assert done.returncode == 0
    assert "Example: rolltree" in done.stdout


def test_json_is_the_last_line_of_stdout(tmp_path: Path) -> None:
    out = tmp_path / "index.json"
    done = rolltree("bench", "index", "--length", "40", "--steps", "4", "--repeats", "1", "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads(out.read_text())
    assert "Mtok/s" in done.stderr  # the card is for a person


def test_doctor_drafts_for_real() -> None:
    done = rolltree("doctor", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["ok"]
    first = {"name": "native core", "state": "ok", "found": "drafts flow", "fix": "", "part": "core"}
    assert document["checks"][0] == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "index", "--traces", "aime"], "--traces = 'aime': must be NAME=EARLIER,LATER"),
        (["bench", "index", "--traces", "a=x.jsonl,y.jsonl"], "x.jsonl"),
        (["bench", "index", "--repeats", "0"], "--repeats"),
        (["bench", "nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = rolltree(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
