"""The GPU benchmarks on a CPU with tiny shapes: the same code, the same command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rolltree.engine.verify as verify
from benchmarks.gpu import exact as gpu_exact
from benchmarks.gpu import forced as gpu_forced
from benchmarks.gpu.__main__ import app, exact
from benchmarks.gpu.curves import fit, measure_curves
from benchmarks.gpu.matrix import Matrix, run_matrix
from benchmarks.gpu.shapes import load
from rolltree.bench.workload import Group, markov
from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.replay.profiles import Load, load_profile

torch.set_num_threads(1)
FREE = CostModel(base=1.0, token=1e-9)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", "cpu", "float32")


def rollout(document: dict, **wanted: object) -> dict:
    return next(case for case in document["cases"] if wanted.items() <= case.items())


@pytest.mark.parametrize("name", gpu_forced.DRAFTERS)
def test_forced_runs_reproduce_what_was_recorded(tiny, name: str) -> None:
    if name == "suffix":
        pytest.importorskip("arctic_inference")
    groups = markov(3, 4, 40)
    case = gpu_forced.run_forced(tiny, groups, batch=5, name=name, max_draft=8, cost=FREE)
    assert case["identical"]
    assert case["tokens"] == 3 * 4 * 40
    assert 0 < case["host_share"] < 1
    if name == "none":
        assert case["tokens_per_step"] == 1
    if name.startswith("rolltree"):
        assert case["tokens_per_step"] > 1.1
        assert case["acceptance_rate"] > 0.02


def test_a_rollout_that_history_holds_is_taken_in_long_strides(tiny) -> None:
    text = np.random.default_rng(0).integers(0, 500, 121).astype(np.int32)
    groups = [Group(np.array([1, 2, 3], np.int32), [text], [text])]
    case = gpu_forced.run_forced(tiny, groups, batch=1, name="rolltree", max_draft=10, cost=None)
    assert case["tokens_per_step"] > 6
    wrong = [Group(groups[0].prompt, [text[::-1].copy()], [text])]
    other = gpu_forced.run_forced(tiny, wrong, batch=1, name="rolltree", max_draft=10, cost=None)
    assert other["tokens_per_step"] < 1.3
    assert other["identical"]


def test_sampling_runs_although_tokens_are_forced(tiny, monkeypatch) -> None:
    seen = []
    usual = verify.sample
    monkeypatch.setattr(verify, "sample", lambda *a: seen.append(len(a[0])) or usual(*a))
    case = gpu_forced.run_forced(tiny, markov(1, 2, 10), batch=2, name="none", max_draft=1, cost=None)
    assert sum(seen) == case["tokens"]


def test_curves_are_measured_and_fitted_into_a_profile_that_replay_reads(tiny, tmp_path: Path) -> None:
    points = measure_curves(tiny, batches=(1, 4), drafts=(0, 3), prompt=8)
    assert [(p["rows"], p["draft"], p["tokens"]) for p in points] == [(1, 0, 1), (1, 3, 4), (4, 0, 4), (4, 3, 16)]
    assert all(p["seconds"] > 0 for p in points)
    fit(points).save(tmp_path / "cost.json")
    assert load_profile(str(tmp_path / "cost.json")).seconds(Load(rows=4, drafted=12, longest=3)) > 0


def test_the_fit_finds_a_known_device() -> None:
    true = CostModel(base=2e-3, row=1e-5, token=4e-6)
    grid = [(rows, draft) for rows in (1, 8, 64, 256, 512) for draft in (0, 1, 3, 7, 15)]
    points = [{"rows": r, "draft": d, "seconds": true.seconds(r, r * d, d)} for r, d in grid]
    found = fit(points)
    errors = [found.seconds(r, r * d, d) / true.seconds(r, r * d, d) - 1 for r, d in grid]
    assert max(map(abs, errors)) < 0.1


def test_the_chi_square_test_passes_samples_of_the_policy_and_no_others() -> None:
    expected = gpu_exact.enumerated(gpu_exact.tiny_model())
    assert sum(expected.values()) == pytest.approx(1)
    texts, p = list(expected), np.array(list(expected.values()))
    rng = np.random.default_rng(0)
    fair = [texts[i] for i in rng.choice(len(texts), 20_000, p=p)]
    assert gpu_exact.chi_square(fair, expected)["exact"]
    bent = p.copy()
    bent[np.argmax(p)] += 0.02
    biased = [texts[i] for i in rng.choice(len(texts), 20_000, p=bent / bent.sum())]
    assert not gpu_exact.chi_square(biased, expected)["exact"]


def test_p_values_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = {(i,): 0.1 for i in range(10)}
    drawn = [(i % 10,) for i in range(1000)] + [(0,)] * 60
    case = gpu_exact.chi_square(drawn, expected)
    assert case["p_value"] == pytest.approx(stats.chi2.sf(case["chi_square"], case["degrees"]))
    assert case["degrees"] == 9


def test_every_rule_is_exact_with_drafts_that_are_accepted() -> None:
    cases = gpu_exact.check_distribution("cpu", torch.float32, samples=600, batch=128)
    assert {(c["rule"], c["shape"]) for c in cases} == {
        (r, s) for r in ("coupled", "one-hot") for s in ("chain", "tree")
    }  # fmt: skip
    assert all(c["exact"] and c["accepted"] > 100 for c in cases)


def test_identity_counts_what_parts() -> None:
    model = load("demo", "cpu", "float32")
    prompts = [[4, 5, 6 + i] for i in range(6)]
    for temperature in (0.0, 1.0):
        found = gpu_exact.check_identity(model, prompts, temperature=temperature, batch=4, max_tokens=12)
        assert [found[k]["identical"] for k in ("chain", "tree", "other_batch")] == [6, 6, 6]


def test_the_whole_matrix_on_two_models(tmp_path: Path) -> None:
    matrix = Matrix(
        out=tmp_path, models=("tiny", "demo"), batches=(1, 2), drafts=(2,), drafters=("none", "rolltree"), samples=2,
        data={"markov": markov(2, 2, 12)}, epochs=1, exact_samples=400,
        exact_rollouts=2, parts=("curves", "forced", "exact", "profile"),
    )  # fmt: skip
    said: list[str] = []
    document = run_matrix(matrix, said.append)
    assert json.loads((tmp_path / "gpu.json").read_text())["cases"] == document["cases"]
    assert {case["model"] for case in document["cases"]} == {"tiny", "demo"}
    assert rollout(document, model="tiny", drafter="none", batch=2)["speedup"] == 1
    assert rollout(document, model="tiny", drafter="rolltree", batch=2)["speedup"] > 0
    assert {case["batch"] for case in document["host_share"]} == {2}
    assert [c["temperature"] for c in document["exact"]["demo"]] == [0.0, 1.0]
    for name in ("tiny", "demo"):
        assert CostModel.load(tmp_path / f"cost-{name}.json").seconds(1) > 0
        assert "aten::" in (tmp_path / f"profile-{name}" / "profile.txt").read_text()
        assert (tmp_path / f"profile-{name}" / "profile.json.gz").stat().st_size > 1000
    assert any("demo, loading" in text for text in said)


def test_a_name_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    for names, message in (({"parts": ["magic"]}, "--part"), ({"drafters": ["magic"]}, "--drafter")):
        with pytest.raises(InvalidInputError, match=message):
            Matrix(out=tmp_path, **names)
    for arguments, message in (
        (("gpt-9", "cpu", "float32"), "one of demo"),
        (("tiny", "tpu", "float32"), "--device"),
        (("tiny", "cpu", "int8"), "--dtype"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            load(*arguments)


def test_the_command(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--dtype", "float32", "--quick", "--out", str(tmp_path), "--json"]
    arguments += ["--part", "forced", "--part", "exact", "--drafter", "rolltree", "--exact-samples", "200"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert {case["drafter"] for case in document["cases"]} == {"none", "rolltree"}
    assert len(document["exact"]["distribution"]) == 4
    document["exact"]["distribution"][0]["exact"] = False
    assert not exact(document, float32=True)


def test_a_file_is_no_folder_for_results(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").touch()
    done = CliRunner().invoke(app, ["--device", "cpu", "--out", str(tmp_path / "t.jsonl")])
    assert isinstance(done.exception, InvalidInputError)
    assert "must be a folder" in str(done.exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_so() -> None:
    with pytest.raises(InvalidInputError, match="Use --device cpu"):
        load("tiny", "cuda", "bfloat16")


def test_16_bits_run_too() -> None:
    case = gpu_forced.run_forced(
        load("tiny", "cpu", "bfloat16"), markov(1, 2, 10), batch=2, name="rolltree", max_draft=4, cost=FREE
    )
    assert case["identical"]
