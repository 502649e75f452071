"""What the pages show of vLLM exists in this vLLM: names, arguments, settings. No engine is made."""

from __future__ import annotations

from dataclasses import fields

import pytest
from vllm.config import SpeculativeConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from tests.doc_blocks import PAGES, blocks
from tests.doc_python import Names, python_faults
from tests.doc_settings import settings

SHOWN = [page for page in PAGES if any("vllm" in block.text for block in blocks(page))]


def faults(text: str, names: Names | None = None) -> list[str]:
    return python_faults(text, names or Names(("rolltree", "vllm")))


@pytest.mark.parametrize("page", SHOWN)
def test_blocks_name_what_this_vllm_has(page: str) -> None:
    names = Names(("rolltree", "vllm"))
    texts = [block.text for block in blocks(page) if block.language == "python" and not block.skipped]
    assert [fault for text in texts for fault in faults(text, names)] == []


@pytest.mark.parametrize("page", SHOWN)
def test_settings_are_vllms(page: str) -> None:
    known = {field.name for field in fields(SpeculativeConfig)}
    found = settings(page)
    assert {name for name, _ in found} & {"speculative_config", "additional_config"} <= {
        f.name for f in fields(AsyncEngineArgs)
    }
    assert {key for name, value in found if name == "speculative_config" for key in value} - known == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from vllm import LLM, Motor", "vllm has no Motor"),
        ("from vllm import SamplingParams\nSamplingParams(temperatur=1)", "no argument temperatur"),
        ("from rolltree.vllm import Control\nc = Control(llm)\nc.set_verison(3)", "Control has no set_verison"),
    ],
)
def test_a_planted_fault_is_found(text: str, message: str) -> None:
    assert any(message in fault for fault in faults(text))
