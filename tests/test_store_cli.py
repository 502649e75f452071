from __future__ import annotations

import gzip
import json
import os
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
        (["export", "r.db", "r.db"], "must be another file than the store. Nothing was changed."),
        (["export", "r.db", "old.jsonl"], "It exists: --force replaces it."),
        (["export", "r.db", "no.folder/x.jsonl"], "Make the folder first."),
        (["export", "r.db", "x.jsonl.zst"], "named .jsonl or .jsonl.gz"),
        (["import", "lines.jsonl", "r.db"], "This is a store."),
        (["import", "lines.jsonl", "lines.jsonl"], "This is a file of JSON lines."),
        (["import", "new.db", "torn.jsonl.gz"], "must be a whole gzip file. After line"),
        (["import", "new.db", "latin.jsonl"], "latin.jsonl, line 2"),
        (["import", "new.db", "r.db"], "This is a store."),
        (["import", "new.db", "."], "This is a folder."),
        (["import", ":memory:", "lines.jsonl"], "must be a file on a local disk"),
        (["verify", "torn.jsonl.gz"], "This is a gzip file."),
        (["compact", "empty.db"], "There is nothing in it."),
        (["info", "."], "must be a file. This is a folder."),
    ],
)
def test_mistakes_are_one_line_and_exit_2(path: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "text.db").write_text("no database at all " * 99)
    (tmp_path / "empty.db").write_bytes(b"")
    (tmp_path / "old.jsonl").write_text("precious")
    line = '{"prompt_token_ids": [1], "token_ids": [2]}\n'
    (tmp_path / "lines.jsonl").write_text(line)
    (tmp_path / "latin.jsonl").write_bytes(line.encode() + b'{"key": "na\xefve"}\n')
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(line.encode() * 9999)[:-30])
    before = path.read_bytes()
    done = rolltree(*[tmp_path / a if "." in a else a for a in arguments])
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 or "Usage" in done.stderr  # one sentence
    assert path.read_bytes() == before
    assert (tmp_path / "old.jsonl").read_text() == "precious"
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "missing.db").exists()
    assert not (tmp_path / "new.db").exists() or "gz" in message or "line" in message  # found while it is read


@pytest.mark.parametrize("command", ["info", "verify", "compact", "import", "export"])
def test_every_command_has_an_example(command: str) -> None:
    assert "Example: rolltree store" in rolltree(command, "--help").stdout


def test_lines_that_are_no_rollouts_are_left_out_when_asked(tmp_path: Path) -> None:
    good = b'{"prompt_token_ids": [1], "token_ids": [2]}\n'
    (tmp_path / "t.jsonl").write_bytes(good + b"nonsense\n" * 7 + good)
    done = rolltree("import", tmp_path / "a.db", tmp_path / "t.jsonl", "--skip-bad-lines", "--json")
    found = document(done)
    assert (found["rollouts"], found["skipped_lines"]) == (2, 7)
    assert done.stderr.count("left out: ") == 5
    assert "t.jsonl, line 2" in done.stderr
    assert "7 lines left out" in done.stderr


def test_an_emptied_store_is_not_called_sound(path: Path) -> None:
    path.write_bytes(b"")
    found = document(rolltree("verify", path, "--json"), code=1)
    assert (found["sound"], len(found["faults"])) == (False, 1)


def test_export_replaces_when_forced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("old")
    assert document(rolltree("export", path, tmp_path / "t.jsonl", "--force", "--json"))["rollouts"] == 15
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 15


@pytest.mark.parametrize("name", ["[b]x[nob].db", "[not a tag.db", os.fsdecode(b"latin-\xe9.db"), "two\nlines.db"])
def test_names_of_any_kind_are_shown(path: Path, tmp_path: Path, name: str) -> None:
    path.rename(tmp_path / name)
    for command in (["info"], ["verify"], ["compact"], ["export", tmp_path / "t.jsonl"]):
        done = rolltree(command[0], tmp_path / name, *command[1:], "--json")
        assert document(done)["path"].startswith(str(tmp_path))
