"""`ROLLTREE_DRAFT` in real vLLM: what engines it is for, and that no arguments of the user fail because of it.

Configurations only, but for one engine; that the switch reaches workers of other processes is seen in test_http.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rolltree.demo.assets import model_folder
from rolltree.errors import InvalidInputError
from rolltree.vllm import checks, compat, plugin
from tests.vllm.engines import accepted, engine, generate, logged, prompts

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@pytest.fixture(autouse=True)
def fixture_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.register()
    monkeypatch.setenv("ROLLTREE_DRAFT", "16")


def made(kind: str = "EngineArgs", **settings: Any) -> Any:
    """The configuration of an engine, and a look that its arguments keep nothing of ours."""
    from vllm.engine import arg_utils

    shape = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 64}
    args = getattr(arg_utils, kind)(model=str(model_folder()), **(shape | settings))
    known, asked = set(vars(args)), copy.deepcopy(args.speculative_config)
    config = args.create_engine_config()
    assert set(vars(args)) == known
    assert (args.speculative_config is None) == (asked is None)
    return config


def width(config: Any) -> int:
    """Drafts of a request and step, 0 where rolltree does not draft."""
    return int(config.speculative_config.num_speculative_tokens) if compat.uses_rolltree(config) else 0


@pytest.mark.parametrize("kind", ["EngineArgs", "AsyncEngineArgs"])
def test_engines_that_say_nothing_of_speculation_draft(kind: str) -> None:
    """Of both kinds of arguments, which may be used once more."""
    config = made(kind)
    assert width(config) == 16
    assert checks.check_engine(config).window == 64
    assert config.speculative_config.rolltree_turned_on_by == "ROLLTREE_DRAFT=16"


@pytest.mark.parametrize("value", ["", "0", " "])
def test_without_a_number_nothing_happens(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLTREE_DRAFT", value)
    assert made().speculative_config is None


def test_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another drafter, and ours with a width of its own; what is set in the environment is not even read."""
    monkeypatch.setenv("ROLLTREE_DRAFT", "many")
    assert made(speculative_config=NGRAM).speculative_config.method == "ngram"
    ours = {"method": "custom_class", "model": compat.PROPOSER, "num_speculative_tokens": 5}
    config = made(speculative_config=ours)
    assert width(config) == 5
    assert not hasattr(config.speculative_config, "rolltree_turned_on_by")


@pytest.mark.parametrize("value", ["many", "-1", "129", "1.5", "9" * 5000])
def test_a_bad_value_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLTREE_DRAFT", value)
    with pytest.raises(
        InvalidInputError, match=r"^ROLLTREE_DRAFT = .*number of draft tokens from 0 \(nothing\) to 128"
    ):
        made()


def test_a_bad_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the environment is read as ever."""
    monkeypatch.setenv("ROLLTREE_WINDOW", "-3")
    with pytest.raises(InvalidInputError, match="window = -3"):
        made()


LEFT_OUT: list[tuple[dict[str, Any], str]] = [
    ({"runner": "pooling", "convert": "embed"}, "it is a pooling model"),
    ({"runner": "pooling", "convert": "classify"}, "it is a pooling model"),
    ({"logits_processors": ["a.b:C"]}, "no logits processors of others"),
    ({"pipeline_parallel_size": 2}, "pipeline_parallel_size = 2: must be 1"),
    ({"async_scheduling": True}, "async scheduling is only supported"),
    ({"enable_lora": True, "max_num_batched_tokens": 64}, "decreasing num_speculative_tokens"),
]


@pytest.mark.parametrize(("settings", "reason"), LEFT_OUT)
def test_what_does_not_go_with_drafts_starts_without(settings: dict[str, Any], reason: str) -> None:
    """The same configuration as with the switch off, and one line of the log says why."""
    with logged() as lines:
        config = made(**settings)
    assert config.speculative_config is None
    assert len(lines) == 1
    assert "ROLLTREE_DRAFT=16 is set" in lines[0]
    assert reason in lines[0]


def test_a_vllm_that_does_not_fit_starts_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that drafting needs is gone: who asks by arguments is refused, here the engine runs on."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    monkeypatch.delattr(GPUModelRunner, "_update_states")
    with logged() as lines:
        assert made().speculative_config is None
    assert "GPUModelRunner has no _update_states" in lines[0]


def test_the_users_own_error_stays_theirs() -> None:
    """What is wrong without drafts fails as without drafts, and nothing is said of rolltree."""
    with logged() as lines, pytest.raises(Exception, match="max_model_len"):
        made(max_model_len=10**6)
    assert not lines


def test_lora_lowers_the_width() -> None:
    """vLLM's rule: max_num_batched_tokens >= max_num_seqs x (K + 1); the engine starts with the widest that fits."""
    with logged() as lines:
        assert width(made(enable_lora=True, max_num_batched_tokens=64 * 8)) == 7
    assert "ROLLTREE_DRAFT=16 is lowered to 7" in lines[0]
    with logged() as lines:
        assert width(made(enable_lora=True, max_num_batched_tokens=64 * 17)) == 16
    assert not lines


@pytest.mark.parametrize(
    ("pattern", "served", "expected"),
    [
        ("*policy*", None, 0),
        ("*policy*", ["judge", "my-policy"], 16),
        ("model", None, 16),  # the last part of the path
        ("*/demo/mod?l", None, 16),
        ("", None, 16),
    ],
)
def test_only_the_models_that_are_meant(
    pattern: str, served: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines of one environment, a policy and its teacher for example, are told apart by their names."""
    monkeypatch.setenv("ROLLTREE_DRAFT_MODEL", pattern)
    with logged() as lines:
        assert width(made(served_model_name=served)) == expected
    assert [f"do not fit ROLLTREE_DRAFT_MODEL={pattern}" in line for line in lines] == [True] * (expected == 0)


@pytest.mark.parametrize("runner", ["V1", "V2 async"])
def test_an_engine_drafts(runner: str) -> None:
    """In both model runners; the start says what turned it on."""
    with logged() as lines, engine("none", runner=runner, max_num_seqs=8) as llm:
        texts = [generate(llm, prompts(4), max_tokens=60) for _ in range(2)]
        assert texts[0] == texts[1]
        assert accepted(llm) > 100
    assert any("is ON" in line and "The environment turned it on: ROLLTREE_DRAFT=16." in line for line in lines)
