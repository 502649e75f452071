"""GRPO end to end, run-ahead and trained text of the GPU benchmarks, on a CPU with the demo's model: the same code."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from trl import GRPOTrainer
from typer.testing import CliRunner

from benchmarks.gpu import needs as gpu_needs
from benchmarks.gpu import runahead as gpu_runahead
from benchmarks.gpu import tasks as gpu_tasks
from benchmarks.gpu.__main__ import _show, exact
from benchmarks.gpu.__main__ import app as gpu_app
from benchmarks.gpu.grpo import BASELINE, _run, run_grpo
from benchmarks.gpu.matrix import PARTS, Matrix, run_matrix
from benchmarks.gpu.shapes import load
from benchmarks.gpu.tasks import reasoning_problems, task
from benchmarks.gpu.training import Training, deterministic, settings
from rolltree.bench.subjects import peer_installed
from rolltree.budget import CostModel
from rolltree.cache import RolloutCache
from rolltree.cli.app import app
from rolltree.demo.training import weights_sha256
from rolltree.engine import EngineStats
from rolltree.errors import InvalidInputError, MissingDependencyError
from rolltree.replay.drafters.text import NgramDrafter
from rolltree.trl import RolloutFunction
from rolltree.trl.history import RolloutRecord

torch.set_num_threads(1)
FREE = CostModel(base=1.0, token=1e-9)
PROMPTS, SAMPLES, EPOCHS = 2, 4, 2
DRAFTERS = ["none", *(["suffix"] if peer_installed() else []), "rolltree", "rolltree-tree"]


@pytest.fixture(scope="module")
def start() -> Any:
    return load("demo", "cpu", "float32")


@pytest.fixture(scope="module")
def trained(start: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    sums = task("demo", PROMPTS)
    config = settings(sums, prompts=PROMPTS, samples=SAMPLES, epochs=EPOCHS, max_draft=8)
    traces = tmp_path_factory.mktemp("grpo") / "traces-demo.jsonl.gz"
    return run_grpo(start, sums, config, DRAFTERS, cost=FREE, traces=traces), traces


def empty_document(**parts: Any) -> dict[str, Any]:
    return {
        "device": "cpu",
        "curves": {},
        "cases": [],
        "exact": {},
        "grpo": {},
        "vllm": [],
        "runahead": [],
        "host_share": [],
    } | parts


def test_every_drafter_ends_in_the_same_weights(trained: tuple[dict[str, Any], Path], start: Any) -> None:
    found, _ = trained
    assert [run["drafter"] for run in found["runs"]] == DRAFTERS
    assert found["weights_moved"]
    for run in found["runs"]:
        assert run["rollouts"] == run["identical_rollouts"] == PROMPTS * SAMPLES * EPOCHS
        assert run["first_different_step"] is None
        assert run["identical_weights"]
        assert run["identical_rewards"]
        assert run["weights_sha256"] != weights_sha256(start)
    assert exact(empty_document(grpo={"demo": found}), float32=True)


def test_epochs_say_what_rollouts_and_whole_steps_cost(trained: tuple[dict[str, Any], Path]) -> None:
    cases = {(case["drafter"], case["epoch"]): case for case in trained[0]["cases"]}
    assert len(cases) == len(DRAFTERS) * EPOCHS
    for (name, _), case in cases.items():
        assert case["rollouts"] == PROMPTS * SAMPLES
        assert 0 < case["seconds"] < case["step_seconds"]
        assert 0 <= case["reward"] <= 1
        assert case["drafter_errors"] == 0
        assert case["speedup"] == 1 if name == "none" else case["speedup"] > 0
        assert (case["speedup_over_suffix"] is None) == ("suffix" not in DRAFTERS)
        assert (case["drafted_per_step"] == 0) == (name == "none")
    for name in DRAFTERS[1:]:
        assert cases[name, 1]["tokens_per_step"] > 1.1
        assert cases[name, 2]["tokens_per_step"] > cases[name, 1]["tokens_per_step"]  # it remembers the first epoch


def test_the_rollouts_are_recorded_once_with_log_probabilities(trained: tuple[dict[str, Any], Path]) -> None:
    found, path = trained
    assert found["traces"] == {
        "file": path.name, "drafter": "rolltree", "rollouts": PROMPTS * SAMPLES * EPOCHS, "bytes": path.stat().st_size,
    }  # fmt: skip
    with gzip.open(path, "rt") as lines:
        rollouts = [json.loads(line) for line in lines]
    assert len({(r["prompt_id"], r["step"], r["sample"]) for r in rollouts}) == PROMPTS * SAMPLES * EPOCHS
    assert {r["step"] for r in rollouts} == set(range(EPOCHS))
    assert all(len(r["logprobs"]) == len(r["token_ids"]) > 0 for r in rollouts)
    assert min(min(r["logprobs"]) for r in rollouts) < -0.1
    assert max(max(r["logprobs"]) for r in rollouts) <= 0


def test_replay_reads_what_was_recorded(trained: tuple[dict[str, Any], Path]) -> None:
    found, path = trained
    done = CliRunner().invoke(app, ["replay", str(path), "--batch", "4", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.strip().splitlines()[-1])
    tokens = sum(case["tokens"] for case in found["cases"] if case["drafter"] == "none")
    assert document["cases"][0]["tokens"] == tokens
    assert document["cases"][0]["tokens_per_step"] > 1.1


def record(step: int) -> RolloutRecord:
    engine = EngineStats(tokens=4, steps=2, row_steps=4)
    return RolloutRecord(step=step, training=True, sequences=2, seconds=0.5, engine=engine)


def test_a_run_that_parts_is_found_and_judged_in_float32_alone() -> None:
    texts = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    one = Training(
        None, weights_sha256="a", history=[record(0), record(1)], step_seconds=[1.0, 1.0], rewards=[0.5, 0.5],
        completions=texts,
    )  # fmt: skip
    other = replace(one, weights_sha256="b", completions=[texts[0], [[5, 6], [7, 9]]], step_seconds=[0.5, 0.5])
    run = _run("rolltree", {BASELINE: one, "rolltree": other})
    assert (run["identical_rollouts"], run["rollouts"], run["first_different_step"]) == (3, 4, 1)
    assert not run["identical_weights"]
    assert (run["step_speedup"], run["speedup"], run["speedup_over_suffix"]) == (2.0, 1.0, None)
    for judged in ({"identical_weights": True}, {"identical_rollouts": 4}):  # either alone is enough to fail
        document = empty_document(grpo={"demo": {"runs": [run | judged]}})
        assert not exact(document, float32=True)
        assert exact(document, float32=False)


def test_a_training_is_as_large_as_asked_and_its_batches_come_out_even() -> None:
    sums = task("demo", 2)
    for prompts, samples, batch in ((64, 8, 64), (32, 8, 64), (2, 4, 8), (12, 8, 32), (7, 8, 8), (4, 100, 100)):
        config = settings(sums, prompts=prompts, samples=samples, epochs=4, max_draft=16)
        assert (config.batch, config.slots, config.steps_per_epoch) == (batch, batch, prompts * samples // batch)


def test_real_text_after_a_training_finds_a_warm_cache(tmp_path: Path) -> None:
    matrix = Matrix(
        out=tmp_path, models=("demo",), batches=(8,), drafts=(4,), drafters=("none", "rolltree"), parts=("real",),
        prompts=2, samples=4, epochs=1, train_epochs=2,
    )  # fmt: skip
    cases = {case["drafter"]: case for case in run_matrix(matrix)["cases"]}
    for case in cases.values():
        assert (case["part"], case["model"], case["data"]) == ("real", "demo", "demo-1m after 2 epochs of GRPO")
        assert case["remembered_rollouts"] == 2 * 2 * 4
        assert case["identical_rollouts"]
    assert cases["none"]["drafted_per_step"] == 0


def test_the_command_trains_and_runs_ahead(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--dtype", "float32", "--quick", "--out", str(tmp_path), "--json"]
    arguments += ["--model", "demo", "--part", "grpo", "--part", "runahead", "--drafter", "rolltree", "--epochs", "1"]
    done = CliRunner().invoke(gpu_app, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["grpo"]["demo"]["traces"]["rollouts"] == 16
    assert [case["drafter"] for case in document["cases"]] == ["none", "rolltree"]
    assert [case["mode"] for case in document["runahead"]] == list(gpu_runahead.MODES)
    for case in document["runahead"]:
        assert (case["model"], case["slots"], case["tail"]) == ("demo", 4, "natural")
        assert case["identical_rollouts"]
    assert 0 <= document["runahead"][-1]["slack_used"] <= 1  # how much depends on this machine's clock
    assert (tmp_path / document["grpo"]["demo"]["traces"]["file"]).stat().st_size > 0
    assert json.loads((tmp_path / "gpu.json").read_text())["grpo"] == document["grpo"]
    screen = Console(record=True, width=200)
    _show(screen, document)
    shown = screen.export_text()
    assert "GRPO, 1 epochs" in shown
    assert "16/16" in shown
    assert "ahead-noise" in shown


def test_run_ahead_takes_the_batches_that_hold_a_prompt(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        gpu_runahead, "run_ahead", lambda made, regimes, **_: seen.append((made, regimes)) or {"cases": []}
    )
    rest = {"samples": 4, "steps": 3, "repeats": 2, "tails": ("natural", "long"), "cost": None}
    gpu_runahead.measure_run_ahead("demo", start, batches=(1, 4, 10, 128, 512), **rest)
    gpu_runahead.measure_run_ahead("demo", start, batches=(1, 2), **rest)
    slots = [[(r.slots, r.tail) for r in regimes] for _, regimes in seen]
    assert slots[0] == [(n, tail) for n in (4, 8, 128) for tail in ("natural", "long")]
    assert slots[1] == [(4, "natural"), (4, "long")]
    assert len(seen[0][0].prompts) == 3 * 2 * 128 // 4
    assert seen[0][0].model is start


def test_what_is_missing_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GRPOTrainer  # it is there
    monkeypatch.setitem(sys.modules, "trl", None)
    for wanted in ({"parts": ("grpo",)}, {"parts": ("real",), "train_epochs": 1}):
        with pytest.raises(MissingDependencyError, match=r"rolltree\[trl\].*gpu_bundle"):
            Matrix(out=tmp_path, models=("demo",), **wanted)
    Matrix(out=tmp_path, models=("tiny",), parts=[part for part in PARTS if part != "vllm"])
    Matrix(out=tmp_path, models=("demo",), parts=("curves", "real"))


def test_missing_problems_and_a_second_device_are_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_needs, "gguf_folder", lambda: Path())
    monkeypatch.setattr(gpu_needs, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*reasoning-gym"):
        gpu_needs.check_model("smollm2-135m")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu_needs.check_one_device("cpu")
    with pytest.raises(InvalidInputError, match="CUDA_VISIBLE_DEVICES"):
        gpu_needs.check_one_device("cuda")
    with pytest.raises(InvalidInputError, match="no text"):
        task("dummy-7b", 1)


def test_reasoning_problems_are_distinct_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    questions = [question for question, _ in reasoning_problems(24)]
    assert len(set(questions)) == 24
    assert sum("multiplication" in question for question in questions) == 12
    monkeypatch.setattr(gpu_tasks, "load_smollm2_tokenizer", lambda: None)
    made = gpu_tasks.task("smollm2-135m", 24)
    asked = [messages[0]["content"] for messages in made.rows["prompt"]]
    assert asked == questions
    product = next(i for i, q in enumerate(asked) if "multiplication" in q)
    a, b = (int(word.strip(".")) for word in asked[product].split() if word.strip(".").isdigit())
    answers = [[{"role": "assistant", "content": f"It is {a * b + wrong}"}] for wrong in (0, 1)]
    assert made.reward(completions=answers, index=[product, product], prompts=None) == [1.0, 0.0]


def test_the_update_is_deterministic_and_the_rollouts_within_as_usual() -> None:
    state = torch.are_deterministic_algorithms_enabled
    with deterministic():
        assert state()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        with deterministic(False):
            assert not state()
            assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert state()
    assert not state()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_a_peer_in_the_place_of_the_tree_has_no_cache() -> None:
    assert RolloutFunction(drafter=NgramDrafter(max_draft=4)).cache is None
    for other in ({"cache": RolloutCache()}, {"speculate": False}):
        with pytest.raises(InvalidInputError, match="drafter"):
            RolloutFunction(drafter=NgramDrafter(max_draft=4), **other)


def test_16_bits_train_too(tmp_path: Path) -> None:
    sums = task("demo", 1)
    config = settings(sums, prompts=1, samples=4, epochs=1, max_draft=4)
    model = load("demo", "cpu", "bfloat16")
    found = run_grpo(model, sums, config, ["rolltree"], cost=FREE, traces=tmp_path / "traces.jsonl.gz")
    assert [run["rollouts"] for run in found["runs"]] == [4, 4]
    assert model.dtype == torch.bfloat16
    assert not model.training
