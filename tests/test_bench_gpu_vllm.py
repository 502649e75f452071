"""The vLLM part of the GPU benchmark without vLLM: what is kept, what is judged, what its made models say."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import needs, vllm_part
from benchmarks.gpu.matrix import Matrix
from benchmarks.gpu.vllm_cases import CASES
from benchmarks.gpu.vllm_models import Subject, subject
from benchmarks.gpu.vllm_part import Setting, measure
from benchmarks.gpu.vllm_table import is_exact, table_rows
from rolltree.bench import vllm_process
from rolltree.bench.vllm_process import EngineError, worker
from rolltree.bench.vllm_steps import Step, StepClock, decode_seconds
from rolltree.bench.vllm_worker import About, EngineSpec, Epoch, Order, speculation
from rolltree.errors import InvalidInputError, MissingDependencyError
from tests import bench_workers

ABOUT = About(runner="V2", max_length=64, vocab=50, device="GPU", dtype="bfloat16", coupled=False)


class FakeWorker:
    """Says the seed, or 0; rolltree takes half the time, and in V1 says something else."""

    about = ABOUT

    def __init__(self, spec: EngineSpec, is_wrong: bool) -> None:
        self.spec, self.is_wrong, self.orders = spec, is_wrong, list[Order]()

    def generate(self, order: Order) -> Epoch:
        assert not self.orders or order.version > self.orders[-1].version, "versions only grow"
        self.orders.append(order)
        texts = [[order.seeded * (order.first_seed + i) + self.is_wrong] for i in range(len(order.prompts))]
        seconds = 0.5 if self.spec.drafter == "rolltree" else 1.0
        return Epoch(
            seconds=seconds, tokens=len(texts), drafted=0, accepted=0, draft_seconds=0.0, step_seconds=[0.001, 0.003],
            texts=texts,
        )  # fmt: skip


@pytest.fixture(name="engines")
def fixture_engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorker]:
    made: list[FakeWorker] = []

    @contextmanager
    def fake(spec: EngineSpec, environment: dict[str, str], *, seconds: float) -> Any:
        if spec.speculative:
            raise EngineError("it was ended by signal 9")
        made.append(FakeWorker(spec, environment.get("VLLM_USE_V2_MODEL_RUNNER") == "0"))
        yield made[-1]

    monkeypatch.setattr(vllm_part, "worker", fake)
    return made


def setting(folder: Path, *cases: str, **changes: Any) -> Setting:
    settings = {"device": "cuda:1", "dtype": "bfloat16", "batches": (1, 6), "samples": 4, "drafts": (4, 8)}
    return Setting(out=folder, cases=cases, **settings | changes)


def asked(setting: Setting) -> Subject:
    prompts = [[i] for i in range(setting.prompts())]
    return Subject(name="m", folder="m", prompts=prompts, sampling={"max_tokens": 9})


def test_every_engine_gets_the_same_orders_and_keeps_what_is_done(engines: list[FakeWorker], tmp_path: Path) -> None:
    run, rows = setting(tmp_path, "rolltree-v2-adaptive", "rolltree-v2-coupled", "ngram"), list[dict[str, Any]]()
    measure(asked(run), run, rows.append)
    assert [(w.spec.drafter, w.spec.max_draft) for w in engines] == [
        ("none", 4), ("rolltree", 4), ("rolltree", 8), ("ngram", 4),
    ]  # fmt: skip
    assert all(w.orders == engines[0].orders for w in engines)
    first = [order.prompts for order in engines[0].orders if order.first_seed == 0]
    assert first == [[[0]], [[1]] * 4 + [[2]] * 2, [[3]], [[4]] * 4 + [[5]] * 2], "prompts of their own"
    assert len({order.first_seed for order in engines[0].orders if len(order.prompts) == 6}) == 2
    assert [row["error"] for row in rows].count("it was ended by signal 9") == 2
    assert len(rows) == 4 * 8 + 2
    assert rows[0]["step_milliseconds_median"] == pytest.approx(2.0)
    speeds = {row["case"]: row["speedup"] for row in rows if not row["error"]}
    assert speeds == {"none": 1.0, "rolltree-v2-coupled": 2.0, "ngram": 1.0}
    assert engines[0].spec.arguments[-2:] == ("--gpu-memory-utilization", "0.85")
    assert '"coupled": true' in engines[1].spec.arguments[-1]
    assert len(table_rows(rows)[1]) == 4 * 8


def test_text_is_judged_where_it_can_be(engines: list[FakeWorker], tmp_path: Path) -> None:
    run, rows = setting(tmp_path, "rolltree-v2-coupled", "rolltree-v2", drafts=(4,)), list[dict[str, Any]]()
    measure(asked(run), run, rows.append)
    same = {(r["case"], r["temperature"], r["epoch"]): r["identical_rollouts"] for r in rows if r["batch"] == 6}
    assert [same["none", t, e] for t in (0.0, 1.0) for e in (1, 2)] == [None, 6, None, None]
    assert [same["rolltree-v2-coupled", t, e] for t in (0.0, 1.0) for e in (1, 2)] == [6, 6, 6, 6]
    assert [same["rolltree-v2", t, e] for t in (0.0, 1.0) for e in (1, 2)] == [6, 6, None, None]
    assert is_exact(rows)
    measure(asked(run), replace(run, cases=("rolltree-v1",)), rows.append)
    assert {r["identical_rollouts"] for r in rows if r["case"] == "rolltree-v1" and r["temperature"] == 0} == {0}
    assert not is_exact(rows)


def test_decode_steps_are_those_between_full_batches() -> None:
    steps = [Step(0.0, 4, True), Step(1.0, 4, False), Step(3.0, 5, True), Step(4.5, 3, False), Step(9.0, 2, False)]
    assert decode_seconds(steps) == [1.0, 1.5]
    assert decode_seconds([]) == []


def test_the_clock_knows_first_tokens() -> None:
    class Object:
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

    def outputs(at: float, *names: str) -> Object:
        return Object(timestamp=at, outputs=[Object(request_id=name) for name in names])

    said = iter([outputs(1.0, "a"), outputs(1.5), outputs(2.0, "a", "b"), outputs(3.0, "b"), outputs(4.0, "a")])
    client = Object(get_output=lambda: next(said))
    clock = StepClock(Object(llm_engine=Object(engine_core=client)))
    for _ in range(4):
        client.get_output()
    assert clock.take() == [Step(1.0, 1, True), Step(2.0, 2, True), Step(3.0, 1, False)]
    client.get_output()
    assert clock.take() == [Step(4.0, 1, True)], "a new epoch"


def test_an_engine_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_process, "work", bench_workers.deaf)
    order = Order(prompts=[[1]], sampling={}, version=0)
    with (
        pytest.raises(EngineError, match=r"not done within 0\.01 s"),
        worker(EngineSpec(drafter="none", model="m"), {}, seconds=0.01) as made,
    ):
        made.generate(order)


def test_cases_reach_vllm() -> None:
    for name, case in CASES.items():
        spec = case.spec("m", ("--seed", "0"), slots=4, max_draft=3, log="x")
        assert spec.arguments[:2] == ("--seed", "0")
        assert (speculation(spec) is None) == name.startswith("none")
        assert ("--additional-config" in spec.arguments) == bool(case.options)
    adaptive = CASES["rolltree-v2-adaptive"].spec("m", (), slots=4, max_draft=3, log="x")
    assert (speculation(adaptive) or {})["enable_adaptive_verification"] is True


def test_a_made_model_says_few_words_and_is_rather_sure_of_them() -> None:
    from transformers import AutoModelForCausalLM

    with subject("tiny", "cpu", "float32", prompts=2, max_tokens=None) as made:
        model: Any = AutoModelForCausalLM.from_pretrained(made.folder)
        with torch.inference_mode():
            chances = model(input_ids=torch.tensor(made.prompts)).logits.softmax(-1)
    assert len(made.prompts) == 2
    assert made.sampling["ignore_eos"]
    assert 0.5 < chances.max(-1).values.mean() < 0.95


def test_what_cannot_be_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="--case"):
        Matrix(out=tmp_path, vllm_cases=["magic"])
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="bundle_vllm"):
        Matrix(out=tmp_path, parts=["vllm"])
    with pytest.raises(InvalidInputError, match="--model"), subject("m", "cpu", "float32", prompts=1, max_tokens=1):
        pass
