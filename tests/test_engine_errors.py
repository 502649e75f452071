"""One request's trouble stays its own: the others' rollouts are those of a healthy run."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, T5Config, T5ForConditionalGeneration

from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.errors import CapacityError, InvalidInputError, RequestError
from rolltree.sampling import SamplingParams
from tests.engine_tools import Oracle, prompts, tiny_model

torch.set_num_threads(1)
CONFIG = EngineConfig(slots=4, max_length=48, max_draft=6)
GOOD = [Request(p, SamplingParams(max_tokens=16, seed=i)) for i, p in enumerate(prompts(8))]


def healthy() -> list[list[int]]:
    return [r.token_ids for r in Engine(tiny_model(), CONFIG).generate(GOOD)]


def oracle(**settings: object) -> Oracle:
    known = {(tuple(r.prompt_token_ids), r.sampling.seed): t for r, t in zip(GOOD, healthy(), strict=True)}
    return Oracle(known, vocab=23, **settings)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "empty prompt"),
        ([1] * 48, "max_length = 48"),
        ([1, 23], "token 23 is outside the model's vocabulary of 23"),
        ([-1, 3], "token -1"),
    ],
)
def test_a_bad_prompt_fails_alone(prompt: object, words: str) -> None:
    engine = Engine(tiny_model(), CONFIG)
    results = engine.generate([GOOD[0], Request(prompt), *GOOD[1:]])
    bad = results.pop(1)
    assert bad.finish_reason == "error"
    assert isinstance(bad.error, RequestError)
    assert words in str(bad.error)
    assert [r.token_ids for r in results] == healthy()
    assert (engine.stats.failed, engine.stats.finished) == (1, 9)


def test_a_request_ends_at_the_context() -> None:
    result = Engine(tiny_model(), CONFIG).generate([Request([1] * 40, SamplingParams(max_tokens=100, seed=0))])[0]
    assert (result.finish_reason, len(result.token_ids)) == ("length", 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("drafted", [False, True])
def test_logits_that_are_not_finite_end_their_row(value: float, drafted: bool) -> None:
    model = tiny_model()
    poison = 22
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = value
    batch = [Request(p, SamplingParams(max_tokens=8, seed=i)) for i, p in enumerate(prompts(30, longest=6))]
    whole = [r.token_ids for r in Engine(tiny_model(), CONFIG).generate(batch)]
    known = {(tuple(r.prompt_token_ids), r.sampling.seed): t for r, t in zip(batch, whole, strict=True)}
    drafter = Oracle(known, vocab=23, corrupt=0.3) if drafted else None
    results = Engine(model, CONFIG, drafter).generate(batch)
    for result, tokens, request in zip(results, whole, batch, strict=True):
        met = poison in [*request.prompt_token_ids, *tokens[:-1]]
        assert (result.finish_reason == "error") == met
        assert ("NaN" in str(result.error)) == met
        assert result.token_ids == tokens[: len(result.token_ids)]
        assert met or result.token_ids == tokens
    assert 5 < sum(r.error is None for r in results) < 25


def fail_when(condition: Callable[..., bool], call: Callable[..., object]) -> Callable[..., object]:
    def limited(*args: object) -> object:
        if condition(*args):
            raise torch.OutOfMemoryError("out of memory (planted)")
        return call(*args)

    return limited


def test_out_of_memory_retries_without_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), CONFIG, oracle())
    runner = engine._runner
    monkeypatch.setattr(runner, "logits", fail_when(lambda layout, *_: len(layout.row_of) > 8, runner.logits))
    assert [r.token_ids for r in engine.generate(GOOD)] == healthy()
    assert engine.stats.out_of_memory > 0
    assert engine.stats.accepted > 0


def test_out_of_memory_sheds_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), CONFIG, oracle())
    runner = engine._runner
    monkeypatch.setattr(runner, "logits", fail_when(lambda layout, *_: len(layout.counts) > 3, runner.logits))
    results = engine.generate(GOOD)
    failed = [i for i, r in enumerate(results) if r.error is not None]
    assert 3 in failed
    assert not {0, 1, 2} & set(failed)
    assert all(r.token_ids == t for r, t in zip(results, healthy(), strict=True) if r.error is None)
    assert "out of memory" in str(results[3].error)


def test_out_of_memory_in_the_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), CONFIG)
    runner = engine._runner
    monkeypatch.setattr(runner, "prefill", fail_when(lambda _, pieces, __: max(map(len, pieces)) >= 30, runner.prefill))
    results = engine.generate([Request([3] * 35), *GOOD])
    assert "prefill" in str(results[0].error)
    assert [r.token_ids for r in results[1:]] == healthy()


def test_other_runtime_errors_are_raised_and_leave_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), CONFIG, oracle())
    exact = engine._runner.logits
    monkeypatch.setattr(engine._runner, "logits", lambda *a: (_ for _ in ()).throw(RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        engine.generate(GOOD)
    assert engine.unfinished == 0
    assert engine._runner.model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(engine._runner, "logits", exact)
    assert [r.token_ids for r in engine.generate(GOOD)] == healthy()


@pytest.mark.parametrize("method", ["open", "draft", "advance", "close"])
def test_a_failing_drafter_costs_only_drafts(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drafter = oracle()
    monkeypatch.setattr(drafter, method, lambda *a, **k: 1 / 0)
    engine = Engine(tiny_model(), CONFIG, drafter)
    with caplog.at_level(logging.ERROR, "rolltree"):
        assert [r.token_ids for r in engine.generate(GOOD)] == healthy()
    assert engine.stats.drafter_errors > 1
    assert len(caplog.records) == 1


def test_drafts_of_another_vocabulary_are_ignored() -> None:
    drafter = oracle(corrupt=0.5)
    drafter.vocab = 500
    engine = Engine(tiny_model(), CONFIG, drafter)
    assert [r.token_ids for r in engine.generate(GOOD)] == healthy()
    assert engine.stats.invalid_drafts > 0
    assert engine.stats.accepted > 0


@pytest.mark.parametrize("flaw", ["parents", "too_long", "shape"])
def test_malformed_drafts_are_ignored(flaw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = oracle(tree=True)
    exact = drafter.draft

    def flawed(handles: np.ndarray, limits: np.ndarray) -> object:
        batch = exact(handles, limits + 20 if flaw == "too_long" else limits)
        if flaw == "parents" and batch.parents.size:
            batch.parents[:, -1] = 99
        if flaw == "shape":
            object.__setattr__(batch, "tokens", batch.tokens[:, :0])
        return batch

    monkeypatch.setattr(drafter, "draft", flawed)
    engine = Engine(tiny_model(), EngineConfig(slots=4, max_length=48, max_draft=3), drafter)
    assert [r.token_ids for r in engine.generate(GOOD)] == healthy()
    assert engine.stats.invalid_drafts + engine.stats.drafter_errors > 0


def test_abort_keeps_what_there_is() -> None:
    engine = Engine(tiny_model(), CONFIG, oracle())
    ids = [engine.submit(r) for r in GOOD]
    engine.step()
    assert engine.abort(ids[1])  # running
    assert engine.abort(ids[7])  # waiting
    assert not engine.abort(99)
    results = {}
    while engine.unfinished:
        results |= {r.id: r for r in engine.step()}
    assert [results[i].finish_reason for i in (ids[1], ids[7])] == ["abort", "abort"]
    expected = healthy()
    assert results[ids[1]].token_ids == expected[1][: len(results[ids[1]].token_ids)]
    assert len(results[ids[1]].token_ids) > 0
    assert all(results[ids[i]].token_ids == expected[i] for i in (0, 2, 3, 4, 5, 6))


def test_a_cache_that_cannot_be_allocated_names_its_settings() -> None:
    with pytest.raises(CapacityError, match=r"engine\.slots x engine\.max_length = 1000000000 x .* bytes"):
        Engine(tiny_model(), EngineConfig(slots=10**9))


def test_families_that_cannot_work_are_refused_by_name() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sliding = MistralForCausalLM(MistralConfig(vocab_size=9, num_key_value_heads=1, sliding_window=8, **sizes))
    with pytest.raises(InvalidInputError, match="MistralForCausalLM"):
        Engine(sliding)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(InvalidInputError, match="encoder-decoder"):
        Engine(t5)


COUNTS = ["slots", "max_length", "max_draft", "prefill_tokens", "sample_elements"]
NO_COUNTS: list[object] = [2.5, "3", True, float("nan"), float("inf"), -1, 2**70, [1]]


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, value) for name in COUNTS for value in NO_COUNTS), ("slots", 0), ("slots", None), ("max_length", 1),
     ("max_draft", 1025), ("rule", "greedy"), ("rule", []), ("tie_margin", 1.0), ("tie_margin", float("nan")),
     ("tie_margin", -1e-9), ("tie_margin", "0"), ("compile", 1), ("learn_cost", None)],
)  # fmt: skip
def test_settings_out_of_range_name_themselves(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"engine.{name}"):
        EngineConfig(**{name: value})


def test_longer_than_the_model_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="context of 128"):
        Engine(tiny_model(), EngineConfig(max_length=129))


def test_the_largest_settings_that_are_allowed_work() -> None:
    most = {"max_tokens": 2**31 - 1, "top_k": 2**31 - 1, "stop_token_ids": (2**31 - 1,), "seed": 2**64 - 1}
    settings = [SamplingParams(**most, temperature=t) for t in (0, 1e-5, 1.0, 1e38)]
    results = Engine(tiny_model(), CONFIG, TreeDrafter()).generate([Request([1, 2], s) for s in settings])
    assert [(r.finish_reason, len(r.token_ids)) for r in results] == [("length", 46)] * 4
    config = EngineConfig(slots=2, max_length=48, prefill_tokens=2**31 - 1, sample_elements=2**63 - 1, max_draft=1024)
    assert Engine(tiny_model(), config, TreeDrafter()).generate([Request([1], settings[0])])[0].error is None
