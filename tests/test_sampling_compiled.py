"""The compiled sampler beside the reference: same tokens, same rollouts with drafts and without."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import rolltree.sampling.fused as fused_module
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.sampling import RowParams, SamplingParams, row_keys, sample, sample_compiled
from tests.engine_tools import prompts, tiny_model

torch.set_num_threads(1)


def keys(n: int) -> np.ndarray:
    return row_keys(np.arange(n, dtype=np.uint64) * np.uint64(977), np.arange(n))


@pytest.fixture(params=["written out", "compiled"])
def form(request, monkeypatch) -> str:
    """The function itself, and what the compiler makes of it where there is one."""
    if request.param == "written out":
        monkeypatch.setattr(fused_module, "_compiled", lambda: fused_module.fused)
    elif shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    return str(request.param)


def test_tokens_are_those_of_the_reference(form: str, monkeypatch) -> None:
    torch.manual_seed(0)
    for n, settings in (
        (64, [SamplingParams(temperature=0.7)]),
        (9, [SamplingParams(temperature=t / 4 + 0.5) for t in range(9)]),
        (5, [SamplingParams()]),
    ):
        logits, params = torch.randn(n, 501) * 3, RowParams.of(settings)
        ours, reference = sample_compiled(logits, params, keys(n)), sample(logits, params, keys(n))
        sure = reference.margins > 1e-4
        assert sure.float().mean() > 0.9
        assert torch.equal(ours.tokens[sure], reference.tokens[sure])
        torch.testing.assert_close(ours.log_probs[sure], reference.log_probs[sure], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.margins[sure], reference.margins[sure], rtol=1e-4, atol=1e-4)


def test_broken_logits_are_seen(form: str) -> None:
    logits = torch.zeros(4, 501)
    logits[1, 3], logits[2, 5] = float("nan"), float("inf")
    found = sample_compiled(logits, RowParams.of([SamplingParams()]), keys(4))
    assert found.log_probs.isnan().tolist() == [False, True, True, False]


def test_rollouts_do_not_depend_on_drafts(form: str) -> None:
    model = tiny_model()
    requests = [Request(p, SamplingParams(seed=i, max_tokens=30)) for i, p in enumerate(prompts(12))]
    config = EngineConfig(slots=5, max_length=64, compile=True)
    plain = [r.token_ids for r in Engine(model, config).generate(requests)]
    fast = Engine(model, config, TreeDrafter())
    fast.generate(requests)
    assert [r.token_ids for r in fast.generate(requests)] == plain
    assert fast.stats.accepted > 100
    eager = EngineConfig(slots=5, max_length=64)
    assert [r.token_ids for r in Engine(model, eager).generate(requests)] == plain


def test_filtered_and_greedy_rows_go_to_the_reference(monkeypatch) -> None:
    monkeypatch.setattr(fused_module, "_compiled", lambda: pytest.fail("not for these"))
    logits = torch.randn(3, 20)
    for settings in (
        SamplingParams(temperature=0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.9),
        SamplingParams(min_p=0.1),
    ):
        found = sample_compiled(logits, RowParams.of([settings]), keys(3))
        assert torch.equal(found.tokens, sample(logits, RowParams.of([settings]), keys(3)).tokens)
