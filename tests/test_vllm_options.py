"""Options of the vLLM integration: what is allowed, and that everything else is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.vllm.options import EngineOptions, RequestOptions


def test_dictionary_overrides_environment_overrides_default() -> None:
    """Three places, in this order."""
    environment = {"ROLLTREE_VLLM_WINDOW": "8", "ROLLTREE_VLLM_METRICS": "False", "ROLLTREE_VLLM_DECAY": "1"}
    options = EngineOptions.read({"rolltree": {"window": 4}, "other": 1}, environment)
    assert (options.window, options.metrics, options.decay, options.depth) == (4, False, 1.0, 64)
    assert options.cache.window == 4
    assert options.draft(6).max_draft == 6


@pytest.mark.parametrize(
    ("additional", "environment", "message"),
    [
        ({"rolltree": {"windw": 4}}, {}, r"additional_config\.rolltree\.windw.*Did you mean 'window'"),
        ({"rolltree": {"window": "4"}}, {}, r"additional_config\.rolltree\.window = '4': must be a whole number"),
        ({"rolltree": {"window": -1}}, {}, r"window = -1"),
        ({"rolltree": {"min_survival": 2.0}}, {}, r"min_survival = 2"),
        ({"rolltree": 4}, {}, r"additional_config\.rolltree = 4: must be a dictionary"),
        ({}, {"ROLLTREE_VLLM_WINDO": "4"}, r"environment\.ROLLTREE_VLLM_WINDO"),
        ({}, {"ROLLTREE_VLLM_WINDOW": "many"}, r"ROLLTREE_VLLM_WINDOW = 'many': must be a whole number"),
        ({}, {"ROLLTREE_VLLM_METRICS": "1"}, r"ROLLTREE_VLLM_METRICS = 1: must be true or false"),
    ],
)
def test_bad_engine_options_are_named(additional: object, environment: dict[str, str], message: str) -> None:
    """The error names the option, the value and what is allowed."""
    with pytest.raises(InvalidInputError, match=message):
        EngineOptions.read(additional, environment)


def test_frozen_cost_is_read_from_its_file(tmp_path: Path) -> None:
    """A path is a saved model; anything else that is no mode is refused."""
    model = CostModel(base=1.0, token=0.5)
    model.save(tmp_path / "cost.json")
    assert EngineOptions(cost=str(tmp_path / "cost.json")).frozen_cost() == model
    assert EngineOptions(cost="observed").frozen_cost() is None
    with pytest.raises(InvalidInputError, match=r"rolltree\.cost = 'nothing'"):
        EngineOptions(cost="nothing").frozen_cost()


def test_request_options() -> None:
    """Keys of others are left alone; validation text is not remembered unless asked."""
    assert RequestOptions.read(None) == RequestOptions.read({"other": 1}) == RequestOptions()
    options = RequestOptions.read({"rolltree": {"key": "k", "version": 2, "kind": "validation"}})
    assert (options.key, options.version, options.remembered) == ("k", 2, False)
    assert RequestOptions(kind="validation", remember=True).remembered


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ky": "k"}, r"extra_args\.rolltree\.ky.*Did you mean 'key'"),
        ({"key": ""}, r"extra_args\.rolltree\.key = ''"),
        ({"key": 7}, r"extra_args\.rolltree\.key = 7"),
        ({"version": -1}, r"version = -1"),
        ({"version": True}, r"version = True"),
        ({"kind": "test"}, r"kind = 'test': must be one of rollout, validation, run-ahead"),
        ({"draft": 1}, r"draft = 1: must be true or false"),
        ("k", r"extra_args\.rolltree = 'k': must be a dictionary"),
    ],
)
def test_bad_request_options_are_named(given: object, message: str) -> None:
    """The error names the option, the value and what is allowed."""
    with pytest.raises(InvalidInputError, match=message):
        RequestOptions.read({"rolltree": given})
