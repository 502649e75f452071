"""`rolltree replay` as a user calls it: keys, exit codes, messages, the figure."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from rolltree.budget import CostModel
from rolltree.store import info
from tests.replay_tools import random_rollouts

CONTRACT = [
    "drafter",
    "rollouts",
    "tokens",
    "engine_steps",
    "tokens_per_step",
    "drafted_per_step",
    "acceptance_rate",
    "ceiling_tokens_per_step",
    "ceiling_share",
    "batch",
    "cost_profile",
    "generation_seconds",
    "baseline_seconds",
    "speedup",
    "latency_p50_seconds",
    "latency_p99_seconds",
    "peak_tree_bytes",
    "tree_bytes_per_token",
    "draft_microseconds_per_step",
]


def rolltree(*arguments):
    command = [sys.executable, "-c", "from rolltree.cli import main; main()", "replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Two files: an earlier step, and two later ones."""
    folder = tmp_path_factory.mktemp("traces")
    for name, steps in (("old", [0]), ("new", [1, 2])):
        rollouts = [r for step in steps for r in random_rollouts(step, step=step, prompts=6)]
        lines = [
            {"prompt_id": r.prompt_id, "step": r.step, "sample": r.sample, "prompt_token_ids": r.prompt.tolist(),
             "token_ids": r.tokens.tolist()}
            for r in rollouts
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_document_keeps_its_contract(traces, tmp_path):
    out = tmp_path / "replay.json"
    done = rolltree(traces / "new.jsonl", "--history", traces / "old.jsonl", "--drafter", "rolltree,ngram",
                    "--batch", 2, "--batch", 0, "--json", "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads(out.read_text())
    assert [(c["drafter"], c["batch"]) for c in document["cases"]] == [
        ("rolltree", 2), ("ngram", 2), ("rolltree", 0), ("ngram", 0),
    ]  # fmt: skip
    for key in CONTRACT:
        assert document[key] == document["cases"][0][key], key
        for case in document["cases"]:
            assert isinstance(case[key], str) or math.isfinite(case[key]), key
    assert document["tokens_per_step"] > 1
    assert document["formats"] == {"rolltree": document["rollouts"] + document["history_rollouts"]}
    assert list(document["step_from"]) == ["field step"]
    assert "Read: " in done.stderr
    assert [step["step"] for step in document["cases"][0]["steps"]] == [1, 2]
    assert "rolltree by step" in done.stderr  # the card is for a person
    assert "\x1b" not in done.stderr  # and a bar only for a terminal


def test_a_figure_is_drawn(traces, tmp_path):
    pytest.importorskip("matplotlib")
    done = rolltree(traces / "new.jsonl", "--drafter", "all", "--plot", tmp_path / "replay.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")


def test_a_cost_file_is_read(traces, tmp_path):
    CostModel(base=1.0, token=1e-9).save(tmp_path / "mine.json")
    done = rolltree(traces / "new.jsonl", "--cost", tmp_path / "mine.json", "--batch", 0, "--no-ceiling", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["generation_seconds"] == pytest.approx(document["engine_steps"])
    assert document["ceiling_share"] is None


def test_prompts_leave_and_come_back_from_stores_that_are_kept(traces, tmp_path):
    done = rolltree(traces / "new.jsonl", "--history", traces / "old.jsonl", "--drafter", "rolltree,ngram", "--json",
                    "--batch", 3, "--capacity", "64KiB", "--store", tmp_path / "stores", "--no-ceiling")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, ngram = json.loads(done.stdout.splitlines()[-1])["cases"]
    [path] = (tmp_path / "stores").iterdir()
    assert "rolltree" in path.name
    held = info(path)
    assert (ours["capacity_bytes"], ours["store_bytes"]) == (2**16, held.bytes)
    assert held.rollouts == 3 * 6 * 3
    assert ours["store_bytes_per_token"] == held.bytes / held.tokens
    assert ours["evicted_prompts"] >= ours["rebuilt_prompts"] == sum(s["rebuilt_prompts"] for s in ours["steps"]) > 0
    assert ours["open_seconds"] > 0
    assert "came back" in done.stderr
    assert "store_bytes" not in ngram


def test_bad_lines_can_be_skipped(traces, tmp_path):
    (tmp_path / "bad.jsonl").write_text((traces / "new.jsonl").read_text() + "{\n")
    refused, skipped = (rolltree(tmp_path / "bad.jsonl", *more) for more in ([], ["--skip-bad-lines", "--json"]))
    assert (refused.returncode, skipped.returncode) == (2, 0)
    assert "bad.jsonl:37" in refused.stderr
    assert json.loads(skipped.stdout.splitlines()[-1])["skipped_lines"] == 1
    assert "1 lines that could not be read" in skipped.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["{new}", "--drafter", "medusa"], "--drafter = 'medusa': must be one of none, ngram"),
        (["{new}", "--drafter", "srt:speed=9"], "an option of capacity_bytes"),
        (["{new}", "--cost", "a100"], "--cost = 'a100': must be one of h100-7b"),
        (["{new}", "--split", "third"], "--split = 'third': must be one of all, even, odd"),
        (["{new}", "--shape", "bush"], "--shape"),
        (["{new}", "--batch", "-1"], "--batch"),
        (["{new}", "--samples", "0"], "--samples"),
        (["{new}", "--capacity", "0"], "--capacity = '0': must be a whole number of bytes above 0"),
        (["{new}", "--capacity", "4 GB"], "--capacity = '4 GB'"),
        (["{new}", "--store", "{full}"], "a new or empty folder, or temporary"),
        (["{new}", "--store", "{new}"], "a new or empty folder, or temporary"),
        (["{empty}"], "at least one rollout"),
        ([], "FILE"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(traces, tmp_path, arguments, message):
    (tmp_path / "empty.jsonl").touch()
    names = {"new": traces / "new.jsonl", "empty": tmp_path / "empty.jsonl", "full": tmp_path}
    done = rolltree(*[argument.format(**names) for argument in arguments])
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_an_example_and_loads_no_framework():
    done = rolltree("--help")
    assert done.returncode == 0
    assert "Example: rolltree replay" in done.stdout
    code = (
        "import sys, rolltree.cli, rolltree.replay.run, rolltree.replay.reading;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pyarrow', 'matplotlib', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
