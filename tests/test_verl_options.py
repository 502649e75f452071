"""What a user may set for verl and its router, at both ends of every range; nothing but InvalidInputError leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree.errors import InvalidInputError
from rolltree.runahead import RunAheadConfig
from rolltree.verl.options import WHERE, VerlOptions
from rolltree.verl.router import PromptRouter
from rolltree.verl.router import settings as router_settings

HUGE, NAN, INF = 10**400, math.nan, math.inf
BAD: dict[str, list[Any]] = {
    "key_column": ["", "  ", "a\0b", 3, True, NAN, ["id"]],
    "max_draft": [0, -1, 129, HUGE, 16.0, "16", True, None, NAN, INF],
    "speculate": [0, 1, "true", None, NAN],
    "coupled": [0, 1, "true", None],
    "route": [0, "yes", NAN],
    "share": [0, 1, "ray", None],
    "rpc_seconds": [0, -1, 0.0, NAN, INF, "10", True, None, 3601, HUGE],
    "poll_seconds": [0, -0.05, NAN, INF, "0.05", True, 61, HUGE],
    "run_log": ["", "a\0b", 3, False, ["folder"]],
    "store": ["", "a\0b", 3, False, ["file"]],
    "store_bytes": [-1, 1, 2**20 - 1, 1e9, "1", True, None, NAN, HUGE],
    "store_window": [-1, 0.5, "9", True, None, HUGE],
    "run_ahead": [1, "true", None, [], 0.5],
}
GOOD: dict[str, list[Any]] = {
    "key_column": [None, "id"],
    "max_draft": [1, 128],
    "speculate": [True, False],
    "coupled": [True, False],
    "route": [None, True, False],
    "share": [True, False],
    "rpc_seconds": [0.001, 10, 3600],
    "poll_seconds": [None, 0.001, 60],
    "run_log": [None, "folder"],
    "store": [None, "rollouts.db"],
    "store_bytes": [0, 2**20, 2**63 - 1],
    "store_window": [0, 1, 2**31 - 1],
    "run_ahead": [True, False, {}, {"samples": 1, "budget_share": 0}],
}
BAD_AHEAD: dict[str, list[Any]] = {
    "budget_share": [-1, NAN, INF, "0.1", None, True, HUGE],
    "budget_tokens": [-1, 0.5, "9", True, NAN, HUGE],
    "max_slowdown": [-0.1, NAN, 101],
    "samples": [0, 1.5, 2000, "2", True, None],
    "warm_rollouts": [0, 2.5, HUGE],
    "holdout": [1, -2, 2.0, 65536, "8", False, None],
    "always": [0, "no", None],
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(HUGE),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text() | st.integers(), inner, max_size=2),
    max_leaves=4,
)


def short(value: object) -> str:
    """Name a case."""
    return repr(value)[:20]


def refused(make: Callable[[], object], where: str) -> bool:
    """Whether it is refused; then the message begins with the setting's name."""
    try:
        make()
    except InvalidInputError as error:
        message = str(error)
    else:
        return False
    assert message.startswith(where)
    return True


def cases(table: Mapping[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_the_tables_name_every_option() -> None:
    assert BAD.keys() == GOOD.keys() == VerlOptions.__dataclass_fields__.keys()
    assert BAD_AHEAD.keys() == RunAheadConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize(("name", "value"), ids=short, argvalues=cases(BAD))
def test_a_bad_value_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        VerlOptions.read({name: value})
    assert str(caught.value).startswith(f"{WHERE}.{name} = ")


@pytest.mark.parametrize(("name", "value"), ids=short, argvalues=cases(GOOD))
def test_the_ends_of_each_range_are_taken(name: str, value: object) -> None:
    assert getattr(VerlOptions.read({name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), ids=short, argvalues=cases(BAD_AHEAD))
def test_a_bad_setting_of_run_ahead_is_named(name: str, value: object) -> None:
    if name == "budget_tokens" and value is None:
        return
    with pytest.raises(InvalidInputError) as caught:
        VerlOptions.read({"run_ahead": {name: value}})
    assert str(caught.value).startswith(f"{WHERE}.run_ahead.{name} = ")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match=r"run_ahead\.sample .*Did you mean 'samples'"):
        VerlOptions.read({"run_ahead": {"sample": 1}})
    with pytest.raises(InvalidInputError, match=r"sampler_kwargs\.3 = 'x'"):
        VerlOptions.read({3: "x"})  # type: ignore[dict-item]


@given(ANYTHING | st.dictionaries(st.sampled_from([*BAD, "other"]), ANYTHING, max_size=4))
@settings(max_examples=400, deadline=None)
def test_whatever_is_given_only_our_error_leaves(anything: Any) -> None:
    if refused(lambda: VerlOptions.read(anything), WHERE):
        return
    options = VerlOptions.read(anything)
    assert options == VerlOptions(**{name: getattr(options, name) for name in BAD})


class Unresolved(dict[str, Any]):
    """A configuration with a value that is missing, as OmegaConf's `???`."""

    def __getitem__(self, name: str) -> Any:
        raise RuntimeError(f"Missing mandatory value: {name}")


def test_a_value_that_is_missing_is_the_users_mistake() -> None:
    with pytest.raises(InvalidInputError, match="Missing mandatory value: max_draft"):
        VerlOptions.read(Unresolved(max_draft=None))


@pytest.mark.parametrize("bound", [None, "none", "None", INF, 1e9, 1e308, HUGE], ids=short)
def test_a_router_without_a_bound(bound: object) -> None:
    """One replica takes all of one prompt and of those that belong to it, whatever the others have."""
    router = PromptRouter({"a": 1, "b": 2}, {"bound": bound})
    first = router.acquire_server("first", None, [0])[0]
    for index in range(50):
        router.acquire_server(f"busy {index}", None, [0])
    router.release_server(first, "first")
    assert router.acquire_server("later", None, [0])[0] == first
    assert router.placement.bound == INF


@pytest.mark.parametrize("bound", [0, 0.99, -1, -INF, NAN, True, "2", "", [], {}, -HUGE], ids=short)
def test_a_bad_bound_is_named(bound: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        PromptRouter({"a": 1}, {"bound": bound})
    assert str(caught.value).startswith("router.bound = ")


@pytest.mark.parametrize("slack", [-1, 0.5, 1.0, NAN, INF, "1", None, True, HUGE, []], ids=short)
def test_a_bad_slack_is_named(slack: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        PromptRouter({"a": 1}, {"slack": slack})
    assert str(caught.value).startswith("router.slack = ")


def test_the_ends_of_the_routers_ranges() -> None:
    assert router_settings({"router_class": "x", "bound": 1, "slack": 2**31 - 1}) == (1.0, 2**31 - 1)
    assert router_settings(None) == router_settings({}) == (1.25, 0)
    router = PromptRouter({"a": 1, "b": 2}, {"bound": 1})
    assert {router.acquire_server(str(index), None, [index])[0] for index in range(4)} == {"a", "b"}


@given(ANYTHING | st.dictionaries(st.sampled_from(["bound", "slack", "router_class", 3]), ANYTHING, max_size=3))
@settings(max_examples=300, deadline=None)
def test_whatever_the_router_is_given_it_serves_or_refuses(anything: Any) -> None:
    if refused(lambda: PromptRouter({"a": 1}, anything), "router"):
        return
    router = PromptRouter({"a": 1, "b": 2}, anything)
    assert {router.acquire_server(str(index), None, [index])[1] for index in range(9)} <= {1, 2}


@pytest.mark.parametrize("params", [{"extra_args": 3}, {"extra_args": {"rolltree": [1]}}, 7, "text"])
def test_requests_that_nobody_understands_are_routed(params: Any) -> None:
    router = PromptRouter({"a": 1})
    assert router.acquire_server("r", params, [1])[0] == "a"
    assert router.acquire_server("s", {}, ["no", "tokens"])[0] == "a"  # type: ignore[list-item]
    assert router.acquire_server("t", {}, np.array([1, 2]))[0] == "a"  # type: ignore[arg-type]
