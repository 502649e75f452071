from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rolltree import RolloutStore
from rolltree.store import compact


def rolltree(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from rolltree.cli import main; main()", "store", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def document(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with RolloutStore(tmp_path / "r.db") as store:
        for version in range(5):
            for prompt in range(3):
                store.add([prompt, 1], list(range(50)), version=version)
    return tmp_path / "r.db"


def test_info_and_compact(path: Path) -> None:
    before = document(rolltree("info", path, "--json"))
    assert (before["prompts"], before["rollouts"], before["tokens"]) == (3, 15, 750)
    assert (before["oldest_version"], before["newest_version"], before["schema"]) == (0, 4, 1)
    assert before["bytes_per_token"] == before["bytes"] / 750
    done = document(rolltree("compact", path, "--window", 2, "--json"))
    assert (done["before"]["rollouts"], done["after"]["rollouts"]) == (15, 6)
    assert "6" in rolltree("info", path).stdout


def test_verify_says_what_is_damaged_and_exits_1(path: Path) -> None:
    assert document(rolltree("verify", path, "--json"))["sound"]
    compact(path)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    found = document(rolltree("verify", path, "--json"), code=1)
    assert not found["sound"]
    assert found["faults"]


def test_import_and_export_are_inverse(path: Path, tmp_path: Path) -> None:
    trace, again = tmp_path / "t.jsonl.gz", tmp_path / "again.db"
    assert document(rolltree("export", path, trace, "--json"))["rollouts"] == 15
    assert document(rolltree("import", again, trace, trace, "--json"))["rollouts"] == 30
    assert document(rolltree("info", again, "--json"))["rollouts"] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "missing.db"], "must be a file that exists"),
        (["compact", "missing.db"], "must be a file that exists"),
        (["export", "missing.db", "x.jsonl"], "must be a file that exists"),
        (["import", "new.db", "missing.jsonl"], "missing.jsonl"),
        (["compact", "r.db", "--window", "0"], "--window"),
        (["info", "text.db"], "move the file away"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(path: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "text.db").write_text("no database at all " * 99)
    done = rolltree(*[tmp_path / a if "." in a else a for a in arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "missing.db").exists()
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("command", ["info", "verify", "compact", "import", "export"])
def test_every_command_has_an_example(command: str) -> None:
    assert "Example: rolltree store" in rolltree(command, "--help").stdout
