"""Unsloth: `load_vllm`, which builds its engine's arguments and starts the engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.frameworks.tools import MODEL, WIDTH, width

vllm_utils = pytest.importorskip("unsloth_zoo.vllm_utils", exc_type=ImportError)
MEMORY = (8 << 30, 16 << 30)
"""Free and total bytes of a card that is not there."""


@pytest.fixture(autouse=True)
def fixture_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two questions that Unsloth asks of a card before it has vLLM's arguments."""
    import torch

    monkeypatch.setattr(vllm_utils, "get_mem_info", lambda *_: MEMORY)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))


def arguments(**settings: Any) -> dict[str, Any]:
    """What it would hand to vLLM."""
    from transformers import AutoConfig

    shape = {"max_seq_length": 256, "use_bitsandbytes": False, "enforce_eager": True, "return_args": True}
    made = vllm_utils.load_vllm(MODEL, AutoConfig.from_pretrained(MODEL), **(shape | settings))
    return {name: value for name, value in made.items() if name != "device"}


def configured(made: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(**made).create_engine_config()


@pytest.mark.parametrize("lora", [False, True])
def test_its_engine_drafts(lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LoRA, vLLM's rule for the sizes holds."""
    made = arguments(enable_lora=lora)
    assert "speculative_config" not in made
    config = configured(made)
    assert 1 <= width(config) <= WIDTH
    scheduler = config.scheduler_config
    if lora:
        assert scheduler.max_num_batched_tokens >= scheduler.max_num_seqs * (width(config) + 1)
    else:
        assert width(config) == WIDTH
    monkeypatch.delenv("ROLLTREE_DRAFT")
    assert width(configured(made)) == 0
