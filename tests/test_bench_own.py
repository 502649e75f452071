"""`rolltree bench engine` on a user's own model and prompts: what is asked for reaches the engines, or is refused."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rolltree.bench import vllm_engines, vllm_process
from rolltree.bench.prompts import Prompts
from rolltree.bench.vllm_engines import EngineError, VllmRun
from rolltree.bench.vllm_process import worker
from rolltree.bench.vllm_worker import About, EngineSpec, Epoch, Order, reason
from rolltree.cli import bench_engine
from rolltree.cli.app import app
from rolltree.demo.assets import model_folder
from rolltree.errors import InvalidInputError, MissingDependencyError
from tests import bench_workers


@pytest.fixture(name="prompts")
def fixture_prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt_token_ids": [5, 6, n]}) + "\n" for n in range(7, 12)))
    return path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "engine", *arguments])


def test_the_built_in_engine_measures_and_judges(prompts: Path) -> None:
    """The demo's model, as a folder of Hugging Face; the fourth and fifth prompt are not asked for."""
    torch.set_num_threads(1)
    ran = invoke(
        "--model", str(model_folder()), "--prompts", str(prompts), "--samples", "2", "--rollouts", "6", "--epochs", "2",
        "--max-tokens", "12", "--batch", "4", "--drafter", "rolltree", "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout.strip().splitlines()[-1])
    cases = {(case["drafter"], case["epoch"]): case for case in document["cases"]}
    assert cases.keys() == {("none", 1), ("none", 2), ("rolltree", 1), ("rolltree", 2)}
    assert all(case["identical_rollouts"] for case in cases.values())
    assert cases["rolltree", 2]["tokens_per_step"] > 1
    assert (document["prompts"], document["more_prompts"], document["samples"]) == (3, True, 2)
    assert isinstance(document["worth_it"], bool)
    assert document["best"]["batch"] == 4
    assert document["verdict"] in ran.output
    assert "The first 3 prompts" in ran.output


def test_what_is_asked_for_reaches_vllm(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[VllmRun] = []

    def run_vllm(setting: VllmRun, progress: Any) -> dict[str, Any]:
        asked.append(setting)
        failed = {"batch": None, "drafter": "rolltree", "runner": "V2", "error": "no [triton]", "rollouts": 1}
        empty = dict.fromkeys(
            ("epoch", "seconds", "tokens_per_second", "tokens_per_step", "drafted_per_step", "speedup")
        )
        said = {"verdict": "It [is] so.", "partial": True, "samples": 4}
        return {"cases": [failed | empty], **setting.prompts.document(), **said}

    monkeypatch.setattr(vllm_engines, "run_vllm", run_vllm)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    ran = invoke(
        "--engine", "vllm", "--model", "my/model", "--prompts", str(prompts), "--samples", "4", "--batch", "16",
        "--runner", "v1", "--runner", "v2", "--temperature", "0.7", "--max-draft", "8", "--",
        "--max-model-len", "4096", "--enforce-eager",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    (run,) = asked
    assert (run.model, run.samples, run.epochs, run.temperature, run.max_draft) == ("my/model", 4, 3, 0.7, 8)
    assert run.arguments == ("--max-model-len", "4096", "--enforce-eager")
    assert (run.batches, run.runners, len(run.prompts.tokens)) == ([16], ["v1", "v2"], 5)
    assert run.contenders[0] == ("none", "")
    assert [pair for pair in run.contenders if pair[0] == "rolltree"] == [("rolltree", "v1"), ("rolltree", "v2")]
    for text in ("rolltree V2 failed: no [triton]", "It [is] so.", "Stopped before the end"):
        assert text in ran.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tensorrt"], "--engine = 'tensorrt'"),
        (["--engine", "vllm"], "make vllm-bench"),
        (["--model", "m"], "given together with --prompts"),
        (["--prompts", "p.jsonl"], "given together with --prompts"),
        (["--engine", "vllm", "--model", "m", "--prompts", "p.jsonl", "--device", "cuda"], "--device = 'cuda'"),
        (["--engine", "vllm", "--model", "m", "--prompts", "p.jsonl", "--save-cost", "c.json"], "--save-cost"),
        (["--engine", "vllm", "--model", "m", "--prompts", "p.jsonl", "--repeats", "2"], "--repeats = 2"),
        (["--runner", "v2"], "--engine vllm alone"),
        (["--", "--max-model-len", "9"], "ENGINE ARGUMENTS"),
        (["--samples", "3"], "--samples = 3"),
        (["--model", "m", "--prompts", "p.jsonl", "--train-epochs", "1"], "the demo's model alone"),
    ],
)
def test_what_would_mean_nothing_is_refused(arguments: list[str], message: str) -> None:
    ran = invoke(*arguments)
    assert isinstance(ran.exception, InvalidInputError)
    assert message in str(ran.exception)


def test_bad_prompts_are_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_token_ids": [1]}\n{"promt": "x"}\n')
    monkeypatch.setattr(bench_engine, "_vllm", lambda *_: pytest.fail("it started"))
    ran = invoke("--engine", "vllm", "--model", "m", "--prompts", str(path))
    assert isinstance(ran.exception, InvalidInputError)
    assert ran.exception.name == f"{path}:2"
    path.write_text('{"prompt_token_ids": [1, 99999999]}\n')
    ran = invoke("--model", str(model_folder()), "--prompts", str(path))
    assert isinstance(ran.exception, InvalidInputError)
    assert ran.exception.name == f"{path}:1"


def test_without_vllm_it_says_what_to_install(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = invoke("--engine", "vllm", "--model", "m", "--prompts", str(prompts))
    assert isinstance(ran.exception, MissingDependencyError)


def test_unknown_names_are_told() -> None:
    for changes, message in (({"drafters": ["magic"]}, "--drafter"), ({"runners": ["v3"]}, "--runner")):
        with pytest.raises(InvalidInputError, match=message):
            vllm_engines.run_vllm(VllmRun(model="m", prompts=Prompts(), **changes))  # type: ignore[arg-type]


class FakeWorker:
    """An engine that repeats one text a prompt, twice as fast from its second epoch on."""

    def __init__(self, spec: EngineSpec, max_length: int = 64) -> None:
        self.spec, self.epoch = spec, 0
        self.about = About(runner="V1", max_length=max_length, vocab=50, device="GPU", dtype="bfloat16", coupled=False)

    def generate(self, order: Order, progress: Any) -> Epoch:
        progress(len(order.prompts))
        self.epoch += 1
        is_ours = self.spec.drafter == "rolltree"
        texts = [[*prompt[:2], self.epoch * (self.spec.drafter == "ngram")] for prompt in order.prompts]
        return Epoch(
            seconds=1.0 if is_ours and self.epoch > 1 else 2.0, tokens=3 * len(texts), drafted=4 * is_ours,
            accepted=2 * is_ours, draft_seconds=0.0, texts=texts if order.with_texts else [],
        )  # fmt: skip


@pytest.fixture(name="engines")
def fixture_engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the processes; returns what each drafter raises at its start."""
    from contextlib import contextmanager

    raised: dict[str, Any] = {}

    @contextmanager
    def fake(spec: EngineSpec, environment: Any) -> Any:
        raised.setdefault("environments", []).append(environment)
        if spec.drafter in raised:
            raise raised[spec.drafter]
        yield FakeWorker(spec, raised.get("max_length", 64))

    monkeypatch.setattr(vllm_engines, "worker", fake)
    return raised


def own(**changes: Any) -> VllmRun:
    prompts = Prompts(tokens=[[1, 2], [3, 4, 5]], places=["p:1", "p:2"])
    settings = {"model": "m", "prompts": prompts, "temperature": 0.0, "drafters": ["rolltree", "ngram"], "epochs": 2}
    return VllmRun(**settings | changes)


def test_a_failure_is_a_row_and_the_others_go_on(engines: dict[str, Any]) -> None:
    for error in (EngineError("it was ended by signal 9"), InvalidInputError("lora", 1, "0")):
        engines["rolltree"] = error
        document = vllm_engines.run_vllm(own())
        assert [case["drafter"] for case in document["cases"]] == ["none"] * 2 + ["rolltree"] + ["ngram"] * 2
        assert document["cases"][2]["error"] == str(error)
        assert document["worth_it"] is None
        assert not document["partial"]
    engines["none"] = EngineError("no such model")
    with pytest.raises(EngineError, match="vLLM does not start with this model and these arguments: no such model"):
        vllm_engines.run_vllm(own())


def test_identity_is_judged_where_it_can_be(engines: dict[str, Any]) -> None:
    document = vllm_engines.run_vllm(own())
    same = {(case["drafter"], case["epoch"]): case["identical_rollouts"] for case in document["cases"]}
    assert same == {
        ("none", 1): None, ("none", 2): 16, ("rolltree", 1): 16, ("rolltree", 2): 16, ("ngram", 1): 0, ("ngram", 2): 0,
    }  # fmt: skip
    assert document["worth_it"]
    assert document["best"]["speedup"] == 2.0
    sampled = vllm_engines.run_vllm(own(temperature=1.0))
    assert {case["identical_rollouts"] for case in sampled["cases"]} == {None}


def test_the_runner_is_rolltrees_alone(engines: dict[str, Any]) -> None:
    vllm_engines.run_vllm(own(runners=["v1", "v2"]))
    assert engines["environments"] == [
        {}, {"VLLM_USE_V2_MODEL_RUNNER": "0"}, {"VLLM_USE_V2_MODEL_RUNNER": "1"}, {},
    ]  # fmt: skip


def test_prompts_that_the_model_cannot_take_are_named(engines: dict[str, Any]) -> None:
    engines["max_length"] = 3
    with pytest.raises(InvalidInputError, match="p:2 = '3 tokens'"):
        vllm_engines.run_vllm(own())
    engines["max_length"] = 64
    prompts = Prompts(tokens=[[1], [50]], places=["p:1", "p:2"])
    with pytest.raises(InvalidInputError, match="p:2 = 50"):
        vllm_engines.run_vllm(own(prompts=prompts))


def test_ctrl_c_keeps_what_is_done(engines: dict[str, Any]) -> None:
    def progress(what: str, rollouts: int) -> None:
        if what == "rolltree: epoch 2 of 2":
            os.kill(os.getpid(), signal.SIGINT)

    document = vllm_engines.run_vllm(own(), progress)
    assert document["partial"]
    assert [(case["drafter"], case["epoch"]) for case in document["cases"]] == [
        ("none", 1), ("none", 2), ("rolltree", 1),
    ]  # fmt: skip
    assert document["best"]["speedup"] == 1.0, "of the epoch that is complete"


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("killed_at_work", "signal 9 (often: out of memory)"),
        ("killed_before", "signal 9 (often: out of memory)"),
        ("leaves_at_start", "exit code 3"),
    ],
)
def test_an_engine_that_ends_without_a_word_is_told(way: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_process, "work", getattr(bench_workers, way))
    order = Order(prompts=[[1]], sampling={}, version=0)
    with pytest.raises(EngineError) as caught, worker(EngineSpec(drafter="none", model="m"), {}) as made:
        made.generate(order)
    assert message in str(caught.value)
    assert multiprocessing.active_children() == []


def test_an_engine_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_process, "work", bench_workers.deaf)
    monkeypatch.setattr(vllm_process, "SECONDS_TO_END", 0)
    with worker(EngineSpec(drafter="none", model="m"), {"ROLLTREE_TEST": "1"}) as made:
        assert made.about == bench_workers.ABOUT
        assert "ROLLTREE_TEST" not in os.environ
    assert multiprocessing.active_children() == []


def test_without_vllm_the_engine_says_so(tmp_path: Path) -> None:
    """The real process, as far as it comes."""
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("tests/vllm has it with real engines")
    spec = EngineSpec(drafter="none", model="m", log=str(tmp_path / "log"))
    with pytest.raises(EngineError, match="ModuleNotFoundError"), worker(spec, {}):
        pass


def test_the_reason_is_found_where_vllm_prints_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(EngineCore pid=12) ERROR 11-26 03:00:00 [core.py:1] Traceback (most recent call last):\n"
        "(EngineCore pid=12) ERROR 11-26 03:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory.\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    said = "RuntimeError: Engine core initialization failed. See root cause above."
    assert reason(log, said) == "torch.OutOfMemoryError: CUDA out of memory."
    assert reason(log, "") == "torch.OutOfMemoryError: CUDA out of memory."
    pydantic = (
        "ValidationError: one\n  Value error, bad [type=value_error, input_value=ArgsKwargs((), {}), input_type=X]"
    )
    assert reason(log, pydantic) == "ValidationError: one Value error, bad"
    assert reason(tmp_path / "none", said) == said
