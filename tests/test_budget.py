from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rolltree import CostModel
from rolltree.budget import allocate, one_length, rate_of
from rolltree.errors import InvalidInputError


def rows(*chains: list[float]) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, chains)) or 1
    survival = np.full((len(chains), width), np.nan, np.float32)
    for b, chain in enumerate(chains):
        survival[b, : len(chain)] = chain
    return survival, np.array([len(c) for c in chains], np.int32)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(0.01, 0.99), max_size=3), min_size=1, max_size=4),
    st.floats(0, 10),
    st.floats(0.001, 3),
    st.floats(0, 2),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.floats(0, 8),
)
@example([[0.5], [0.5]], 0.0, 0.375, 0.0, 0.0, 0.0, 1.0)  # one of two equal tokens pays, both do not
def test_no_other_lengths_have_more_goodput(
    factors: list[list[float]], base: float, token: float, ragged: float, cell: float, row: float, floor: float
) -> None:
    """The core prices a step as `CostModel.seconds` does, each of its terms and the floor."""
    chains = [np.cumprod(f).tolist() for f in factors]
    survival, lengths = rows(*chains)
    cost = CostModel(base=base, row=row, token=token, ragged=ragged, cell=cell, floor=floor)

    def rate(cut: tuple[int, ...] | np.ndarray) -> float:
        gain = sum(float(survival[b, :n].sum()) for b, n in enumerate(cut))
        return (len(chains) + gain) / cost.seconds(len(chains), int(sum(cut)), max(cut))

    best = max(rate(cut) for cut in product(*[range(n + 1) for n in lengths]))
    assert rate(allocate(survival, lengths, cost)) == pytest.approx(best, rel=1e-5)


def test_free_tokens_are_all_taken_and_expensive_ones_none() -> None:
    survival, lengths = rows([0.9, 0.5], [0.2])
    assert allocate(survival, lengths, CostModel(base=1, token=1e-9)).tolist() == [2, 1]
    assert allocate(survival, lengths, CostModel(base=0, token=1)).tolist() == [0, 0]


def test_rows_are_not_coupled() -> None:
    survival, lengths = rows([0.99, 0.98, 0.97], [0.01])
    assert allocate(survival, lengths, CostModel(base=1, token=0.3)).tolist() == [3, 0]


def test_the_rectangle_caps_the_longest_draft() -> None:
    survival, lengths = rows([0.9, 0.8, 0.7, 0.6], *[[0.9, 0.2]] * 7)
    assert allocate(survival, lengths, CostModel(base=1, token=0.01)).tolist() == [4, 2, 2, 2, 2, 2, 2, 2]
    padded = CostModel(base=1, token=0.01, cell=0.05)  # a second column costs eight cells for little
    assert allocate(survival, lengths, padded).tolist() == [1] * 8


def test_nothing_drafted() -> None:
    survival, lengths = rows([], [])
    assert allocate(survival, lengths, CostModel(base=1, token=1)).tolist() == [0, 0]


def test_fit_recovers_a_model_and_stays_non_negative() -> None:
    true = CostModel(base=1e-3, row=2e-5, token=3e-5, cell=1e-5, ragged=2e-4)
    shapes = [(b, n * b // 2, n) for b in (1, 8, 32, 64) for n in (0, 1, 4, 16)]
    shapes += [(b, n * b, n) for b in (8, 32) for n in (1, 4, 16)]
    fitted = CostModel.fit([(*shape, true.seconds(*shape)) for shape in shapes])
    for name in ("base", "row", "token", "cell", "ragged"):
        assert getattr(fitted, name) == pytest.approx(getattr(true, name), rel=1e-6)
    falling = CostModel.fit([(1, 0, 0, 2.0), (64, 0, 0, 1.0), (64, 64, 1, 1.5)])
    assert min(falling.base, falling.row, falling.token, falling.cell, falling.ragged) >= 0


def test_a_frozen_model_comes_back(tmp_path: Path) -> None:
    cost = CostModel(base=1e-3, row=0.1, token=3e-5, ragged=2e-4, ungraphed=1e-3)
    cost.save(tmp_path / "cost.json")
    assert CostModel.load(tmp_path / "cost.json") == cost
    (tmp_path / "bad.json").write_text('{"speed": 1}')
    with pytest.raises(InvalidInputError, match=r"cost\.path"):
        CostModel.load(tmp_path / "bad.json")


@pytest.mark.parametrize("name", ["base", "row", "token", "cell", "ragged", "ungraphed", "floor"])
@pytest.mark.parametrize("value", [-1, -1e-300, float("nan"), float("inf"), 1e13, 10**400, "1", None, True])
def test_bad_models(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"cost\\.{name}"):
        CostModel(**({"base": 1.0, "token": 1.0} | {name: value}))  # type: ignore[arg-type]


def test_a_step_costs_something() -> None:
    with pytest.raises(InvalidInputError, match="positive"):
        CostModel(base=0, token=0)


@pytest.mark.parametrize(
    "table",
    [[], [(1, 0, 0, 1.0)], [(1, 0, 0)] * 3, [(1, 0, 0, 0.0)] * 2, [(1, 0, 0, float("nan"))] * 2, "ab",
     [(1, float("inf"), 0, 1.0)] * 2, [(-1, 0, 0, 1.0)] * 2, [(1, 0, 0, 1.0), (1,)]],
)  # fmt: skip
def test_observations_that_are_none(table: object) -> None:
    with pytest.raises(InvalidInputError, match=r"cost\.observations"):
        CostModel.fit(table)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"", b"[]", b"[1]", b'{"base": "x", "token": 1}', b'{"base": NaN, "token": 1}']
)
def test_files_that_hold_no_model(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_bytes(text)
    with pytest.raises(InvalidInputError, match=r"cost\."):
        CostModel.load(tmp_path / "cost.json")
    with pytest.raises(InvalidInputError, match=r"cost\.path"):
        CostModel.load(tmp_path / "missing.json")


def test_break_even_is_zero_below_the_knee() -> None:
    """There the first draft tokens are free, however unlikely they are; from the knee on each costs its share."""
    cost = CostModel(base=0.0, token=1e-5, floor=1e-2)
    assert [cost.break_even(rows) for rows in (1, 32, 999)] == [0.0, 0.0, 0.0]
    assert cost.break_even(1000) == pytest.approx(1.0)
    assert cost.break_even(4000) == pytest.approx(1.0)
    half = CostModel(base=1e-2, token=1e-5, floor=1.5e-2)
    assert half.break_even(499) == 0.0
    assert half.break_even(1000) == pytest.approx(0.5)


@settings(deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    st.floats(0, 2),
    st.floats(0.001, 1),
    st.floats(0, 8),
)
def test_what_is_below_break_even_is_never_taken(
    rows_: int, factors: list[float], base: float, token: float, floor: float
) -> None:
    survival, lengths = rows(*[np.cumprod(factors).tolist()] * rows_)
    cost = CostModel(base=base, token=token, floor=floor)
    taken = allocate(survival, lengths, cost)
    least = min((float(survival[b, n - 1]) for b, n in enumerate(taken) if n), default=1.0)
    assert least >= cost.break_even(rows_) * (1 - 1e-5)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(0.01, 0.99), max_size=4), min_size=1, max_size=4),
    st.dictionaries(st.integers(0, 6), st.booleans(), max_size=4),
    st.integers(0, 3),
    st.tuples(*[st.floats(0, 3)] * 6),
)
@example([[0.9, 0.9, 0.9]], {3: True, 0: False}, 0, (1.0, 0.0, 0.2, 0.0, 0.0, 1.0))  # only the graph pays for 3
def test_no_other_one_length_has_more_goodput(
    factors: list[list[float]], sizes: dict[int, bool], more: int, parts: tuple[float, ...]
) -> None:
    """Token by token: a row brings the survival of what it drafted within the length, and costs all of the length."""
    chains = [np.cumprod(f).tolist() for f in factors]
    survival, lengths = rows(*chains)
    names = ("base", "row", "token", "cell", "floor", "ungraphed")
    cost = CostModel(**dict(zip(names, parts, strict=True)) | {"token": parts[2] + 1e-3})
    count = len(chains) + more

    def rate(size: int) -> float:
        tokens = count + sum(sum(map(float, survival[b, : min(size, n)])) for b, n in enumerate(lengths))
        seconds = cost.base + cost.row * count + cost.token * count * (1 + size) + cost.cell * count * (1 + size)
        return tokens / max(cost.floor, seconds + (0 if sizes.get(size, size == 0) else cost.ungraphed))

    length, found = one_length(survival, lengths, sizes, cost, rows=count)
    assert length in {0, *sizes}
    assert found == pytest.approx(rate(length), rel=1e-5)
    assert found >= max(map(rate, {0, *sizes})) * (1 - 1e-5)


def test_a_graph_may_be_worth_fillers_and_a_long_draft_may_not() -> None:
    survival, lengths = rows([0.9, 0.8, 0.7, 0.6], [], [], [])
    cheap, expensive = (CostModel(base=1, token=token, ungraphed=0.5) for token in (1e-3, 0.2))
    graphs = {0: False, 4: True}
    assert one_length(survival, lengths, graphs, cheap)[0] == 4
    assert one_length(survival, lengths, graphs, expensive)[0] == 0  # twelve fillers cost more than the graph saves
    assert one_length(survival, lengths, {0: True, 4: True}, expensive)[0] == 0


def test_equally_good_lengths_give_the_smaller_one() -> None:
    survival, lengths = rows([0.5], [0.5])
    assert one_length(survival, lengths, {1: True, 3: True}, CostModel(base=0, token=1e-9, floor=1.0))[0] == 1
    assert one_length(survival[:0], lengths[:0], {4: True}, CostModel(base=0, token=1e-9, floor=1.0), rows=2)[0] == 0


def test_the_rate_of_given_lengths() -> None:
    survival, lengths = rows([0.5, 0.25], [0.5])
    cost = CostModel(base=1, row=0.5, token=0.25)
    assert rate_of(survival, lengths, cost, rows=3) == pytest.approx((3 + 1.25) / cost.seconds(3, 3, 2))


def test_steps_outside_the_graphs_cost_more() -> None:
    cost = CostModel(base=1.0, token=0.5, ungraphed=0.25)
    assert cost.seconds(2, 2, 1, ungraphed=1.0) == cost.seconds(2, 2, 1) + 0.25 == cost.outside_graphs.seconds(2, 2, 1)
    assert cost.outside_graphs.outside_graphs is cost.outside_graphs
