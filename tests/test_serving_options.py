"""Options of engines and requests: what is allowed, and that everything else is refused by name."""

from __future__ import annotations

from dataclasses import fields
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.serving.options import EngineOptions
from rolltree.serving.request_options import RequestOptions, with_options
from rolltree.serving.switch import Switch


def test_dictionary_overrides_environment_overrides_default() -> None:
    """Three places, in this order."""
    environment = {"ROLLTREE_VLLM_WINDOW": "8", "ROLLTREE_VLLM_METRICS": "False", "ROLLTREE_VLLM_DECAY": "1"}
    options = EngineOptions.read({"window": 4}, environment, where="a.rolltree")
    assert (options.window, options.metrics, options.decay, options.depth) == (4, False, 1.0, 64)
    assert options.cache.window == 4
    environment |= {"ROLLTREE_WINDOW": "9", "ROLLTREE_DEPTH": "32"}  # the name of any host, which counts of both
    options = EngineOptions.read(None, environment, where="a.rolltree")
    assert (options.window, options.depth, options.decay) == (9, 32, 1.0)
    assert options.draft(6).max_draft == 6


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ({"windw": 4}, {}, r"additional_config\.rolltree\.windw.*Did you mean 'window'"),
        ({"window": "4"}, {}, r"additional_config\.rolltree\.window = '4': must be a whole number"),
        ({"window": -1}, {}, r"window = -1"),
        ({"logits_bytes": -1}, {}, r"logits_bytes = -1: must be a number of bytes"),
        ({"min_survival": 2.0}, {}, r"min_survival = 2"),
        ({"lengths": "equal"}, {}, r"lengths = 'equal': must be one of auto, ragged, uniform"),
        ({"share": "redis"}, {}, r"share = 'redis': must be ray, ray:NAME, or empty"),
        ({"share": "ray:a b"}, {}, r"share = 'ray:a b'"),
        ({"share_seconds": 0.0}, {}, r"share_seconds = 0.0: must be a number from 0.001"),
        ({"share_bytes": 0}, {}, r"share_bytes = 0: must be a number of bytes, 1 or more"),
        (4, {}, r"additional_config\.rolltree = 4: must be a dictionary"),
        ({}, {"ROLLTREE_VLLM_WINDO": "4"}, r"environment\.ROLLTREE_VLLM_WINDO"),
        ({}, {"ROLLTREE_VLLM_WINDOW": "many"}, r"ROLLTREE_VLLM_WINDOW = 'many': must be a whole number"),
        ({}, {"ROLLTREE_WINDO": "4"}, r"environment\.ROLLTREE_WINDO.*Did you mean 'ROLLTREE_WINDOW'"),
        ({}, {"ROLLTREE_window": "4"}, r"environment\.ROLLTREE_window.*Did you mean|known are ROLLTREE_CAPACITY"),
        ({}, {"ROLLTREE_METRICS": "1"}, r"ROLLTREE_METRICS = 1: must be true or false"),
        ({}, {"ROLLTREE_VLLM_METRICS": "1"}, r"ROLLTREE_VLLM_METRICS = 1: must be true or false"),
    ],
)
def test_bad_engine_options_are_named(given: object, environment: dict[str, str], message: str) -> None:
    """The error names the option, the value and what is allowed."""
    with pytest.raises(InvalidInputError, match=message):
        EngineOptions.read(given, environment, where="additional_config.rolltree")


def test_the_switch_is_read_and_its_misspelt_name_refused() -> None:
    """Also where an engine drafts by its arguments; whom it is meant for is told by any of a model's names."""
    switch = Switch.read({"ROLLTREE_DRAFT": "8", "ROLLTREE_DRAFT_MODEL": "Qwen/*"}, largest=9)
    assert switch == Switch(width=8, model="Qwen/*")
    assert (switch.is_for(["Qwen/Qwen3"]), switch.is_for(["qwen/x"]), switch.is_for(["/a/Qwen/", "b"])) == (1, 0, 0)
    assert Switch(width=8, model="Qwen3-?B").is_for(["/models/Qwen3-8B/"])
    assert Switch.read({"ROLLTREE_DRAFT_MODEL": "x", "ROLLTREE_DRAFT": " 0 ", "ROLLTREE_RUN": "1"}, largest=9) is None
    for name in ("ROLLTREE_DRAFTS", "ROLLTREE_draft_model", "ROLLTREE_DRAFT_MODELS", "ROLLTREE_DRAFTMODEL"):
        with pytest.raises(InvalidInputError, match=rf"environment\.{name} = '3'.*Did you mean 'ROLLTREE_DRAFT"):
            Switch.read({name: "3"}, largest=9)
        with pytest.raises(InvalidInputError, match=rf"environment\.{name} = '3'"):
            EngineOptions.read({}, {name: "3"}, where="a")
    for value in ("10", "-1", "x", "1e1", "\u0663", "9" * 5000):
        with pytest.raises(InvalidInputError, match=r"^ROLLTREE_DRAFT = .*from 0 \(nothing\) to 9"):
            Switch.read({"ROLLTREE_DRAFT": value}, largest=9)


def test_variables_of_others_are_left_alone() -> None:
    """Ours that are no options, and whatever a user calls theirs."""
    others = "METRICS_FOLDER NATIVE_TESTS LINES FUZZ_EXAMPLES VECTORISED DRAFT DRAFT_MODEL SGLANG HOME RUN"
    environment = {f"ROLLTREE_{name}": "x" for name in others.split()} | {"ROLLTREE": "0"}
    assert EngineOptions.read({}, environment, where="a") == EngineOptions()


def test_frozen_cost_is_read_from_its_file(tmp_path: Path) -> None:
    """A path is a saved model; anything else that is no mode is refused."""
    model = CostModel(base=1.0, token=0.5)
    model.save(tmp_path / "cost.json")
    assert EngineOptions(cost=str(tmp_path / "cost.json")).frozen_cost() == model
    assert EngineOptions(cost="observed").frozen_cost() is None
    with pytest.raises(InvalidInputError, match=r"rolltree\.cost = 'nothing'"):
        EngineOptions(cost="nothing").check_files("additional_config.rolltree")


@pytest.mark.parametrize("share", ["ray", "ray:a", ""])
def test_sharing_needs_ray(share: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is asked for and not installed, the start says so."""
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    options = EngineOptions.read({"share": share}, {}, where="a.rolltree")
    if share:
        with pytest.raises(InvalidInputError, match=r"^a\.rolltree\.share = 'ray.*Install ray"):
            options.check_files("a.rolltree")
    else:
        options.check_files("a.rolltree")


def test_request_options() -> None:
    """Keys of others are left alone; validation text is not remembered unless asked."""
    assert RequestOptions.read(None) == RequestOptions.read({"other": 1}) == RequestOptions()
    options = RequestOptions.read({"rolltree": {"key": "k", "version": 2, "kind": "validation"}})
    assert (options.key, options.version, options.remembered) == ("k", 2, False)
    assert RequestOptions(kind="validation", remember=True).remembered


VALUES = {"key": "k", "session": "s", "version": 3, "kind": "validation", "draft": False, "remember": True}


def test_both_spellings_know_every_field() -> None:
    """What is nested has a flat name, with the same meaning, and nothing is left out."""
    assert VALUES.keys() == {field.name for field in fields(RequestOptions)}
    flat = {f"rolltree_{name}": value for name, value in VALUES.items()}
    assert RequestOptions.read(flat) == RequestOptions.read({"rolltree": VALUES}) == RequestOptions(**VALUES)
    half = {f"rolltree_{name}": VALUES[name] for name in ("key", "kind", "draft")}
    rest = {name: VALUES[name] for name in ("session", "version", "remember")}
    assert RequestOptions.read(half | {"rolltree": rest}) == RequestOptions(**VALUES)


@pytest.mark.parametrize(
    ("name", "values", "read"),
    [
        ("draft", ["false", "False", "0", 0, 0.0, False], False),
        ("remember", ["true", "TRUE", "1", 1, 1.0, True], True),
        ("version", ["12", 12, 12.0], 12),
        ("key", ["7", 7], "7"),
        ("key", [None], None),
        ("kind", [None], "rollout"),
    ],
)
def test_flat_values_are_read_where_they_mean_one_thing(name: str, values: list[object], read: object) -> None:
    """HTTP carries texts and numbers only; null is as if it were not there."""
    for value in values:
        assert getattr(RequestOptions.read({f"rolltree_{name}": value}), name) == read


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rolltree": {"ky": "k"}}, r"extra_args\.rolltree\.ky.*Did you mean 'key'"),
        ({"rolltree": {"key": ""}}, r"extra_args\.rolltree\.key = ''"),
        ({"rolltree": {"key": 7}}, r"extra_args\.rolltree\.key = 7"),
        ({"rolltree": {"version": -1}}, r"version = -1"),
        ({"rolltree": {"version": True}}, r"version = True"),
        ({"rolltree": {"kind": "test"}}, r"kind = 'test': must be one of rollout, validation, run-ahead"),
        ({"rolltree": {"draft": 1}}, r"draft = 1: must be true or false"),
        ({"rolltree": {"remember": 1}}, r"remember = 1: must be true or false"),
        ({"rolltree": "k"}, r"extra_args\.rolltree = 'k': must be a dictionary.*rolltree_key"),
        ({"rolltree_kind": "test"}, r"extra_args\.rolltree_kind = 'test': must be one of rollout"),
        ({"rolltree_version": "1e3"}, r"rolltree_version = '1e3': must be a whole number"),
        ({"rolltree_version": "-0"}, r"rolltree_version = '-0'"),
        ({"rolltree_version": "\u0663"}, r"rolltree_version = '\u0663'"),
        ({"rolltree_version": 1.5}, r"rolltree_version = 1\.5"),
        ({"rolltree_draft": 2}, r"rolltree_draft = 2"),
        ({"rolltree_draft": "yes"}, r"rolltree_draft = 'yes'"),
        ({"rolltree_key": 1.5}, r"rolltree_key = 1\.5: must be a non-empty text"),
        ({"rolltree_key": "a\ud800"}, r"rolltree_key = 'a\\ud800': must be a non-empty text of valid Unicode"),
        ({"rolltree": {"session": "\udfff"}}, r"rolltree\.session = .*valid Unicode"),
        ({"rolltree_key": True}, r"rolltree_key = True"),
        ({"rolltree_key": ["k"]}, r"rolltree_key = \['k'\]"),
        ({"rolltree.kind": "rollout"}, r"rolltree\.kind.*Did you mean 'rolltree_kind'"),
        ({"Rolltree_Kind": "rollout"}, r"Rolltree_Kind.*known are rolltree_key"),
        ({"rolltree_ky": "k"}, r"Did you mean 'rolltree_key'"),
        ({"rolltree_key": "a", "rolltree": {"key": "b"}}, r"rolltree_key = 'a': must be left out: .*rolltree\.key is"),
        ({"rolltree_key": 10**5000}, r"rolltree_key = <int>"),
        ({"rolltree_kind": "k" * 10**6}, r"rolltree_kind = 'k{199}\.\.\.: must"),
    ],
)
def test_bad_request_options_are_named(given: dict[str, object], message: str) -> None:
    """The error names the option, the value and what is allowed."""
    with pytest.raises(InvalidInputError, match=message):
        RequestOptions.read(given, where="extra_args")


class Hostile:
    """A value that fails where it can."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.builds(Hostile),
    st.just(5000).map(lambda digits: 10**digits),
    st.sampled_from(["true", "1", "rollout", np.zeros(2), np.int64(3), RequestOptions]),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
FIELDS = st.sampled_from(list(VALUES)) | st.text(max_size=6) | st.integers()
ARGUMENTS = st.dictionaries(
    st.sampled_from(["rolltree", *(f"rolltree_{name}" for name in VALUES), "rolltree.key", "other"])
    | st.text(max_size=4).map("rolltree".__add__)
    | st.integers(),
    ANYTHING | st.dictionaries(FIELDS, ANYTHING, max_size=3),
    max_size=4,
)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(ARGUMENTS)
def test_nothing_but_a_sentence_leaves_read(arguments: dict[Any, Any]) -> None:
    """Whatever a request holds: options, or an error with a text of bounded length."""
    try:
        options = RequestOptions.read(arguments)
    except InvalidInputError as error:
        said: str | None = str(error)
    else:
        said = None
    if said is not None:
        assert len(said) < 1000
    else:
        own = {name for name in arguments if isinstance(name, str) and name.lower().startswith("rolltree")}
        assert own <= {"rolltree", *(f"rolltree_{name}" for name in VALUES)}
        assert isinstance(options.draft, bool)
        assert RequestOptions.read(with_options(arguments)) == options


@given(ANYTHING)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_other_containers_are_left_alone(arguments: Any) -> None:
    """`extra_args` that is no mapping, or holds none of our names, asks for nothing."""
    if not isinstance(arguments, dict):
        assert RequestOptions.read(arguments) == RequestOptions()


def test_options_are_added_in_either_spelling() -> None:
    """Run-ahead marks a request that has flat options of its own."""
    marked = with_options({"rolltree_key": "k", "rolltree_kind": "rollout", "other": 1}, kind="run-ahead")
    assert marked == {"other": 1, "rolltree": {"key": "k", "kind": "run-ahead"}}
    assert RequestOptions.read(with_options({"rolltree": {"key": "k"}}, version=2)) == RequestOptions(
        key="k", version=2
    )
