"""Same tokens: as `model.generate` at T=0, and with any drafter, slot count or batch at T>0. With planted bugs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rolltree.engine import Engine, EngineConfig, Request, Result
from rolltree.engine.kv_cache import SlotCache
from rolltree.sampling import SamplingParams
from tests.engine_tools import Oracle, prompts, tiny_model

torch.set_num_threads(1)
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")
CONFIG = EngineConfig(slots=6, max_length=64, max_draft=8)
NEW = 24
DRAFTERS = [(tree, corrupt) for tree in (False, True) for corrupt in (0.0, 0.3, 1.0)]


def requests(count: int, *, temperature: float = 1.0, stop: tuple[int, ...] = (5,), **sampling: float) -> list[Request]:
    settings = [
        SamplingParams(temperature=temperature, max_tokens=NEW, seed=i, stop_token_ids=stop, **sampling)
        for i in range(count)
    ]
    return [Request(p, s) for p, s in zip(prompts(count), settings, strict=True)]


def oracle(batch: list[Request], results: list[Result], **settings: object) -> Oracle:
    known = {
        (tuple(r.prompt_token_ids), r.sampling.seed): result.token_ids for r, result in zip(batch, results, strict=True)
    }
    return Oracle(known, vocab=23, **settings)


def tokens(results: list[Result]) -> list[list[int]]:
    return [r.token_ids for r in results]


def reference(model: torch.nn.Module, batch: list[Request]) -> list[list[int]]:
    """Greedy `model.generate` on the left-padded batch, cut after the stop token."""
    longest = max(len(r.prompt_token_ids) for r in batch)
    ids = torch.tensor([[0] * (longest - len(r.prompt_token_ids)) + list(r.prompt_token_ids) for r in batch])
    mask = torch.tensor([[0] * (longest - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids) for r in batch])
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=5, pad_token_id=0
    )[:, longest:].tolist()
    return [row[: row.index(5) + 1] if 5 in row else row for row in out]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_identical_to_generate(family: str) -> None:
    model, batch = tiny_model(family), requests(52, temperature=0.0)  # 208 prompts over the four families
    plain = Engine(model, CONFIG).generate(batch)
    assert tokens(plain) == reference(model, batch)
    for tree, corrupt in DRAFTERS[:4:2]:
        engine = Engine(model, CONFIG, oracle(batch, plain, tree=tree, corrupt=corrupt))
        assert tokens(engine.generate(batch)) == tokens(plain)
        assert engine.stats.accepted > 0


@pytest.mark.parametrize(("tree", "corrupt"), DRAFTERS)
def test_same_seed_same_rollout_with_any_drafter(tree: bool, corrupt: float) -> None:
    model, batch = tiny_model(), requests(40, temperature=0.9, top_p=0.95)
    plain = Engine(model, CONFIG).generate(batch)
    drafter = oracle(batch, plain, tree=tree, corrupt=corrupt)
    engine = Engine(model, CONFIG, drafter)
    drafted = engine.generate(batch)
    assert tokens(drafted) == tokens(plain)
    for a, b in zip(plain, drafted, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    assert engine.stats.drafted > 100
    assert engine.stats.tokens == engine.stats.row_steps + engine.stats.accepted
    assert engine.stats.tokens == sum(len(r.token_ids) for r in drafted)
    # The drafter was told exactly what was emitted, and every handle was closed.
    assert sorted(t for t, keep in drafter.closed if keep) == sorted(tokens(drafted))
    assert not drafter.live


@pytest.mark.parametrize("slots", [1, 3, 40])
def test_same_seed_same_rollout_at_any_slot_count(slots: int) -> None:
    model, batch = tiny_model("llama"), requests(40)
    config = EngineConfig(slots=slots, max_length=64, prefill_tokens=7)
    assert tokens(Engine(model, config).generate(batch)) == tokens(Engine(model, CONFIG).generate(batch))


def test_one_hot_rule_at_temperature_zero_is_greedy() -> None:
    model, batch = tiny_model(), requests(20, temperature=0.0)
    plain = Engine(model, CONFIG).generate(batch)
    config = EngineConfig(slots=6, max_length=64, max_draft=8, rule="one-hot")
    for tree in (False, True):
        rejecting = Engine(model, config, oracle(batch, plain, tree=tree, corrupt=0.2)).generate(batch)
        assert tokens(rejecting) == tokens(plain)
        for a, b in zip(plain, rejecting, strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_siblings_share_the_prefill_and_differ() -> None:
    model, prompt = tiny_model(), prompts(1, longest=20)[0]
    batch = [Request(prompt * 2, SamplingParams(max_tokens=10, seed=i)) for i in range(12)]
    engine = Engine(model, CONFIG)
    results = engine.generate(batch)
    assert engine.stats.prefilled == len(prompt * 2) - 1
    assert engine.stats.shared == 11 * (len(prompt * 2) - 1)
    assert len({tuple(t) for t in tokens(results)}) > 6


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    Engine(model, CONFIG).generate(requests(3))
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    loss = model(input_ids=torch.arange(10)[None], labels=torch.arange(10)[None]).loss
    loss.backward()  # no inference tensors were left behind


class TestNearTies:
    """Logits that differ by rounding between batch shapes: noise of 1e-6 stands for it."""

    @staticmethod
    def run(slots: int, tie_margin: float, monkeypatch: pytest.MonkeyPatch, temperature: float) -> Engine:
        model = tiny_model("llama")

        def tie(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
            # Tokens 2k and 2k + 1 get equal logits everywhere. Equal rows of weights would not do: kernels for single
            # rows may add them up in another order each, so on some processors their logits differ.
            logits[..., 1:22:2] = logits[..., 0:22:2]
            return logits

        model.lm_head.register_forward_hook(tie)
        engine = Engine(model, EngineConfig(slots=slots, max_length=64, tie_margin=tie_margin))
        noise = torch.Generator().manual_seed(slots)
        exact = engine._runner.logits
        monkeypatch.setattr(
            engine._runner,
            "logits",
            lambda *a: (x := exact(*a)) + 1e-6 * torch.randn(x.shape, generator=noise),
        )
        engine.results = engine.generate(requests(20, temperature=temperature))
        return engine

    def test_they_are_decided_by_the_prefix_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engines = [self.run(slots, 1e-4, monkeypatch, 0.0) for slots in (2, 5)]
        assert tokens(engines[0].results) == tokens(engines[1].results)
        assert min(e.stats.tie_recomputes for e in engines) > 50
        assert all(t % 2 == 0 or t == 22 for r in engines[0].results for t in r.token_ids[:-1])

    def test_without_the_margin_they_are_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engines = [self.run(slots, 0.0, monkeypatch, 0.0) for slots in (2, 5)]
        assert tokens(engines[0].results) != tokens(engines[1].results)


class TestPlantedBugs:
    """The identity checks above must be able to fail."""

    @staticmethod
    def differs(engine: Engine, batch: list[Request], plain: list[Result]) -> bool:
        return tokens(engine.generate(batch)) != tokens(plain)

    def test_rollback_off_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = tiny_model(), requests(20)
        plain = Engine(model, CONFIG).generate(batch)
        engine = Engine(model, CONFIG, oracle(batch, plain, corrupt=0.3))
        exact = engine._runner.logits
        monkeypatch.setattr(
            engine._runner, "logits", lambda layout, ids, start, trees: exact(layout, ids, start + 1, trees)
        )
        assert self.differs(engine, batch, plain)

    @pytest.mark.parametrize("bug", ["copy_row", "move"])
    def test_a_row_or_path_that_was_not_moved(self, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = tiny_model(), requests(20)
        plain = Engine(model, CONFIG).generate(batch)
        monkeypatch.setattr(SlotCache, bug, lambda *a: None)
        assert self.differs(Engine(model, CONFIG, oracle(batch, plain, tree=True)), batch, plain)

    def test_a_row_that_leaks_into_its_successor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = tiny_model(), requests(20)
        plain = Engine(model, CONFIG).generate(batch)
        engine = Engine(model, CONFIG)
        monkeypatch.setattr(engine._runner, "prefill", lambda *a: None)
        assert self.differs(engine, batch, plain)


def test_new_weights_meet_no_old_cache() -> None:
    model, batch = tiny_model(), requests(20)
    used = Engine(model, CONFIG)
    used.generate(batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert tokens(used.generate(batch)) == tokens(Engine(model, CONFIG).generate(batch))
