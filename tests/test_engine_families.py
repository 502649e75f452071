"""Which models the engine takes: right families pass the comparison with their own forward, others are named."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.engine import attention as attention_module
from rolltree.engine.runner import Runner
from rolltree.errors import InvalidInputError
from rolltree.sampling import SamplingParams
from tests.engine_tools import tiny_model

torch.set_num_threads(1)
SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
    "initializer_range": 0.06,
}  # fmt: skip
LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 48,
}  # fmt: skip
CONFIG = EngineConfig(slots=3)


def random_model(family: str, **settings: Any) -> Any:
    kind = getattr(tf, f"{family}Config", None)
    if kind is None:
        pytest.skip(f"this transformers has no {family}")
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(kind(**(SIZES | settings))).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma", "GPTNeoX", "Phi", "Olmo2", "Mixtral", "Helium"])
def test_right_families_pass(family: str, dtype: torch.dtype) -> None:
    model = random_model(
        family, head_dim=16, num_key_value_heads=4, **({"sliding_window": None} if family == "Mixtral" else {})
    )
    Engine(model.to(dtype), CONFIG)


@pytest.mark.parametrize(
    ("rope", "family"),
    [
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, "Llama"),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}, "Qwen2"),
        ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}, "Llama"),
    ],
    ids=["linear", "yarn", "llama3"],
)  # fmt: skip
def test_rotary_factors_that_are_constants_pass(rope: dict[str, Any], family: str) -> None:
    engine = Engine(random_model(family, rope_parameters=rope), CONFIG)
    assert engine.max_length == 128


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("DiffLlama", {}, "DiffLlamaForCausalLM .*differential attention"),
        ("DeepseekV2", LATENT, "DeepseekV2ForCausalLM .*latent attention"),
        ("DeepseekV3", LATENT, "DeepseekV3ForCausalLM .*latent attention"),
        ("Nemotron", {}, "NemotronForCausalLM .*family 'nemotron'"),
        ("Doge", {}, "DogeForCausalLM .*mask of its own"),
        ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48},
         r"Phi3ForCausalLM .*longrope.*max_length to 48"),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         r"LlamaForCausalLM .*dynamic.*max_length to 128"),
    ],
    ids=lambda v: v if isinstance(v, str) and v.isalnum() else "",
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_families_are_refused_by_name_when_the_engine_is_made(
    family: str, settings: dict[str, Any], words: str, dtype: torch.dtype
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        Engine(random_model(family, **settings).to(dtype), CONFIG)


@pytest.mark.parametrize("family", ["DiffLlama", "DeepseekV3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_that_nobody_listed_are_found_out(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison alone, without what is known of these families."""
    monkeypatch.setattr("rolltree.engine.families._reasons", lambda model: iter(()))
    with pytest.raises(InvalidInputError, match=f"{family}ForCausalLM .*packed forward"):
        Engine(random_model(family, **(LATENT if family == "DeepseekV3" else {})).to(dtype), CONFIG)


def test_longrope_is_right_where_its_factors_stay() -> None:
    model = random_model("Phi3", rope_parameters=LONGROPE, original_max_position_embeddings=48, num_key_value_heads=2)
    with pytest.raises(InvalidInputError, match="longrope"):
        Engine(model, EngineConfig(slots=3, max_length=49))
    config = EngineConfig(slots=3, max_length=48)
    prompts = np.random.default_rng(0).integers(2, 97, (6, 5)).tolist()
    batch = [Request(p, SamplingParams(max_tokens=12 * (i % 3) + 15, seed=i)) for i, p in enumerate(prompts)]
    plain = [Engine(model, config).generate([request])[0].token_ids for request in batch]
    engine = Engine(model, config, TreeDrafter())
    for _ in range(2):
        assert [r.token_ids for r in engine.generate(batch)] == plain


Wrong = Callable[..., tuple[torch.Tensor, None]]


def scaled(attend: Wrong) -> Wrong:
    """Attention a little flatter than the model's."""
    return lambda *args, scaling=None, **more: attend(*args, scaling=0.9 * scaling, **more)


def shuffled(attend: Wrong) -> Wrong:
    """Heads in another order."""

    def wrong(*args: Any, **more: Any) -> tuple[torch.Tensor, None]:
        out, none = attend(*args, **more)
        return out.flip(2), none

    return wrong


def late(attend: Wrong) -> Wrong:
    """Wrong only where rows of different lengths lie side by side."""

    def wrong(*args: Any, **more: Any) -> tuple[torch.Tensor, None]:
        out, none = attend(*args, **more)
        ragged = len(more["rolltree_plan"].rectangles) > 1
        return (out.roll(1, 1) if ragged else out), none

    return wrong


@pytest.mark.parametrize("fault", [scaled, shuffled, late])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_attention_is_found_out(
    fault: Callable[[Wrong], Wrong], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is scaled and dtype is torch.bfloat16:
        pytest.skip("within what half precision may do")
    model = random_model("Llama").to(dtype)
    monkeypatch.setattr(attention_module, "slot_attention", fault(attention_module.slot_attention))
    with pytest.raises(InvalidInputError, match=r"LlamaForCausalLM .*differs from the model's own after token"):
        Engine(model, CONFIG)


def test_the_comparison_is_made_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither mode nor weights, no random number is drawn, and the cache is as new."""
    calls: list[int] = []
    forward = Runner.reference_logits
    monkeypatch.setattr(Runner, "reference_logits", lambda self, text: calls.append(len(text)) or forward(self, text))
    model = random_model("Llama", attention_dropout=0.5).train()
    model.model.layers[0].eval()  # a part that its owner froze
    modes = [module.training for module in model.modules()]
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    engines = [Engine(model, CONFIG), Engine(model, EngineConfig(slots=1, max_length=64), TreeDrafter())]
    assert calls == [48]
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # type: ignore[index]
    assert [module.training for module in model.modules()] == modes
    assert not engines[0]._cache.data.any()
    assert engines[0].stats.prefilled == engines[0].stats.steps == 0
    engines[0].generate([Request([3, 4, 5], SamplingParams(max_tokens=2, seed=0))])
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("length", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_the_smallest_engines_can_be_made(length: int, slots: int) -> None:
    Engine(tiny_model("gpt2"), EngineConfig(slots=slots, max_length=length, max_draft=0))


def test_weights_that_are_no_numbers_are_left_to_the_requests() -> None:
    """What the model itself answers with NaN says nothing about the family."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    engine = Engine(model, CONFIG)
    result = engine.generate([Request([1, 2], SamplingParams(max_tokens=4, seed=0))])[0]
    assert "NaN" in str(result.error)
    assert torch.isfinite(engine._cache.data).all()


def test_a_models_own_error_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(model.model.layers[0].mlp, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Engine(model, CONFIG)
    assert model.config._attn_implementation == "sdpa"
