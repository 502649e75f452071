"""The vLLM part of the GPU benchmark without vLLM: what is kept, what is judged, what its made models say."""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import needs, vllm_part
from benchmarks.gpu.enlarged import enlarge
from benchmarks.gpu.matrix import Matrix
from benchmarks.gpu.shapes import load
from benchmarks.gpu.vllm_cases import CASES
from benchmarks.gpu.vllm_models import Subject, subject
from benchmarks.gpu.vllm_part import Setting, measure
from benchmarks.gpu.vllm_table import is_exact, table_rows
from rolltree.bench import vllm_process
from rolltree.bench.vllm_process import EngineError, worker
from rolltree.bench.vllm_steps import Step, StepClock, decode_seconds
from rolltree.bench.vllm_worker import About, EngineSpec, Epoch, Order, speculation
from rolltree.demo.assets import load_model
from rolltree.errors import InvalidInputError, MissingDependencyError
from tests import bench_workers

ABOUT = About(runner="V2", max_length=64, vocab=50, device="GPU", dtype="bfloat16", coupled=False)


class FakeWorker:
    """Says the seed, or 0; rolltree takes half the time, and in V1 says something else."""

    about = ABOUT

    def __init__(self, spec: EngineSpec, is_wrong: bool) -> None:
        self.spec, self.is_wrong, self.orders = spec, is_wrong, list[Order]()
        self.calls = list[str]()

    def start(self) -> None:
        if self.spec.speculative:
            raise EngineError("it was ended by signal 9")
        self.calls.append("start")

    def dismiss(self) -> None:
        self.calls.append("dismiss")

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
        engine = FakeWorker(spec, environment.get("VLLM_USE_V2_MODEL_RUNNER") == "0")
        made.append(engine)
        yield engine
        engine.calls.append(f"closed with {len(made)} there, within {seconds:g} s")

    monkeypatch.setattr(vllm_part, "starting", fake)
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
    ran = [w for w in engines if w.calls[0] == "start"]
    assert [(w.spec.drafter, w.spec.max_draft) for w in ran] == [
        ("none", 4), ("rolltree", 4), ("rolltree", 8), ("ngram", 4),
    ]  # fmt: skip
    assert [w.calls[-1] for w in engines] == [f"closed with {n} there, within 240 s" for n in range(1, 7)]
    assert all(w.orders == engines[0].orders for w in ran)
    first = [order.prompts for order in engines[0].orders if order.first_seed == 0]
    assert first == [[[0]], [[1]] * 4 + [[2]] * 2, [[3]], [[4]] * 4 + [[5]] * 2], "prompts of their own"
    assert len({order.first_seed for order in engines[0].orders if len(order.prompts) == 6}) == 2
    assert [row["error"] for row in rows].count("it was ended by signal 9") == 2
    assert len(rows) == 4 * 8 + 2
    assert rows[0]["step_milliseconds_median"] == pytest.approx(2.0)
    speeds = {row["case"]: row["speedup"] for row in rows if not row["error"]}
    assert speeds == {"none": 1.0, "rolltree-v2-coupled": 2.0, "ngram": 1.0}
    assert engines[0].spec.arguments[-2:] == ("--gpu-memory-utilization", "0.85")
    assert '"coupled": true' in ran[1].spec.arguments[-1]
    assert len(table_rows(rows)[1]) == 4 * 8


def test_engines_that_start_together_share_the_memory_and_wait_for_their_turn(
    engines: list[FakeWorker], tmp_path: Path
) -> None:
    run, rows = setting(tmp_path, "rolltree-v2-adaptive", "ngram", together=True, drafts=(4,)), list[dict[str, Any]]()
    config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    measure(replace(asked(run), folder=str(tmp_path)), run, rows.append)
    closed = "closed with 3 there, within 720 s"
    assert [w.calls for w in engines] == [
        ["start", "dismiss", closed], ["dismiss", closed], ["start", "dismiss", closed],
    ]  # fmt: skip
    assert [row["case"] for row in rows if row["error"]] == ["rolltree-v2-adaptive"]
    assert len(rows) == 2 * 8 + 1
    given = dict(itertools.pairwise(engines[0].spec.arguments))
    assert int(given["--kv-cache-memory-bytes"]) == 6 * (1 + 9 + 4 + 1) * (2 * 3 * 2 * 16) * 2 * 1.25
    assert float(given["--gpu-memory-utilization"]) < 0.1


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


def test_a_large_model_says_what_the_small_one_in_it_says() -> None:
    from transformers import AutoModelForCausalLM

    with subject("tiny", "cpu", "float32", prompts=2, max_tokens=None) as made:
        large: Any = AutoModelForCausalLM.from_pretrained(made.folder)
    small: Any = load_model()
    assert made.sampling["stop_token_ids"] == [small.config.eos_token_id]
    assert large.num_parameters() > 1.5 * small.num_parameters()
    with torch.inference_mode():
        text = small.generate(torch.tensor(made.prompts[:1]), max_new_tokens=50, do_sample=False)
        ours, theirs = large(input_ids=text).logits, small(input_ids=text).logits
    words = small.config.vocab_size
    torch.testing.assert_close(ours[..., :words], theirs, atol=1e-3, rtol=0)
    assert ours[..., words:].max() < theirs.min() - 100, "it has no other words"
    last: Any = large.model.layers[-1].mlp
    assert (last.up_proj.weight != 0).all(), "the other weights are random, as of a real model"


def test_a_model_that_does_not_fit_is_named() -> None:
    small: Any = load_model()
    with pytest.raises(InvalidInputError, match="larger than the small model"):
        enlarge(load("demo", "cpu", "float32"), small)


def test_what_cannot_be_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="--case"):
        Matrix(out=tmp_path, vllm_cases=["magic"])
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="bundle_vllm"):
        Matrix(out=tmp_path, parts=["vllm"])
    with pytest.raises(InvalidInputError, match="--model"), subject("m", "cpu", "float32", prompts=1, max_tokens=1):
        pass
