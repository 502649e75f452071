from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree import CostModel
from rolltree.budget import allocate, terms
from rolltree.errors import InvalidInputError
from rolltree.step_cost import PRIOR, StepCostObserver
from rolltree.step_cost.observer import BUCKETS

CPU = CostModel(base=1.1e-3, row=3e-5, token=2.2e-5, cell=3e-6, ragged=1e-4)
GPU = CostModel(base=6e-3, row=1e-6, token=2e-5, cell=0.0, ragged=0.0)


ROOFLINE = CostModel(base=5e-4, row=0.0, token=2e-5, floor=6e-3)


def drive(
    observer: StepCostObserver, true: CostModel, steps: int, *, rows: Callable[[int], int], seed: int = 0,
    noise: float = 0.1, stalls: float = 0.0, accept: float = 0.8,
) -> tuple[int, float]:  # fmt: skip
    """Run steps whose drafts are chosen by the observer's own model; returns the drafted tokens and the seconds."""
    rng = np.random.default_rng(seed)
    total, spent = 0, 0.0
    for step in range(steps):
        n = rows(step)
        first = rng.uniform(accept - 0.2, min(1.0, accept + 0.2), (n, 1))
        survival = (first ** np.arange(1, 9)).astype(np.float32)
        lengths = allocate(survival, np.full(n, 8, np.int32), observer.model)
        drafted, longest = int(lengths.sum()), int(lengths.max())
        exact = true.seconds(n, drafted, longest)
        observer.observe(
            n, drafted, longest, exact * np.exp(noise * rng.normal()) * (30 if rng.random() < stalls else 1)
        )
        total, spent = total + drafted, spent + exact
    return total, spent


def shrinking(step: int) -> int:
    return 1 + (63 - step % 64) * (64 - step // 64 % 4) // 64


@pytest.mark.parametrize("true", [CPU, GPU])
@pytest.mark.parametrize("stalls", [0.0, 0.05])
def test_a_known_model_is_recovered_from_noisy_steps(true: CostModel, stalls: float) -> None:
    observer = StepCostObserver()
    drive(observer, true, 2000, rows=shrinking, stalls=stalls)
    fitted = observer.freeze()
    for n, drafted, longest in ((1, 0, 0), (8, 20, 6), (32, 0, 0), (32, 100, 8), (64, 200, 8)):
        assert fitted.seconds(n, drafted, longest) == pytest.approx(true.seconds(n, drafted, longest), rel=0.15)
    for n in (8, 32, 64):  # what a draft token more costs
        more = fitted.seconds(n, 4 * n, 6) - fitted.seconds(n, 2 * n, 6)
        assert more == pytest.approx(
            true.seconds(n, 4 * n, 6) - true.seconds(n, 2 * n, 6), rel=0.3 if true is CPU else 0.5
        )  # a GPU always drafts all


def test_the_first_calls_may_compile_and_half_the_steps_be_disturbed() -> None:
    clean, disturbed = StepCostObserver(), StepCostObserver()
    rng = np.random.default_rng(0)
    for step in range(600):
        shape = (1 + step % 32, 2 * (step % 3), 1 if step % 3 else 0)
        slow = 500.0 if step < 5 else 1.5 + rng.random() if rng.random() < 0.4 else 1.0
        clean.observe(*shape, CPU.seconds(*shape))
        disturbed.observe(*shape, CPU.seconds(*shape) * slow)
    assert disturbed.freeze().seconds(16, 8, 2) == pytest.approx(clean.freeze().seconds(16, 8, 2), rel=0.15)


def test_a_floor_is_found_where_there_is_one_and_only_there() -> None:
    observer = StepCostObserver()
    drive(observer, ROOFLINE, 2000, rows=lambda step: 4 * shrinking(step))
    fitted = observer.freeze()
    assert fitted.floor == pytest.approx(ROOFLINE.floor, rel=0.1)
    for n, drafted, longest in ((4, 0, 0), (16, 128, 8), (128, 512, 6), (256, 900, 6)):
        assert fitted.seconds(n, drafted, longest) == pytest.approx(ROOFLINE.seconds(n, drafted, longest), rel=0.15)
    for true in (CPU, GPU):
        observer = StepCostObserver()
        drive(observer, true, 1000, rows=shrinking)
        assert observer.freeze().floor < 1.1 * true.seconds(1)


def test_a_floor_of_the_prior_stays_until_steps_tell_otherwise() -> None:
    observer = StepCostObserver(ROOFLINE)
    for _ in range(100):
        observer.observe(8, 16, 4, 3 * ROOFLINE.floor)
    assert observer.freeze().floor == pytest.approx(3 * ROOFLINE.floor)
    assert observer.freeze().token == pytest.approx(3 * ROOFLINE.token)


def test_one_shape_teaches_the_scale_and_keeps_the_priors_ratios() -> None:
    observer = StepCostObserver(CPU)
    for _ in range(300):
        observer.observe(32, 64, 4, 7 * CPU.seconds(32, 64, 4))
    fitted = observer.freeze()
    for name in ("base", "row", "token", "cell", "ragged"):
        assert getattr(fitted, name) == pytest.approx(7 * getattr(CPU, name), rel=1e-6)


def test_what_rows_and_tokens_share_is_split_as_the_prior_says() -> None:
    prior = CostModel(base=1, row=1e-4, token=1e-2, cell=1e-4)
    observer = StepCostObserver(prior)
    for step in range(300):  # never drafted: a row is a token is a cell
        rows = 1 + step % 64
        observer.observe(rows, 0, 0, 3e-3 * prior.seconds(rows))
    fitted = observer.freeze()
    assert fitted.token == pytest.approx(3e-5, rel=0.05)
    assert fitted.row < 0.1 * fitted.token


@pytest.mark.parametrize("prior", [None, CostModel(base=1, token=1e-4), CostModel(base=1, token=0.5)])
def test_compute_bound_drafts_nothing_and_memory_bound_drafts(prior: CostModel | None) -> None:
    """Whatever the prior: a wrong one is found out, and the probes after that cost less than one per cent."""
    expensive = CostModel(base=1e-3, row=0.0, token=5e-4)  # a draft token costs as much as the token it may save
    observer = StepCostObserver(prior)
    found_out = drive(observer, expensive, 200, rows=lambda step: 512, accept=0.7)[1]
    assert found_out <= 2 * 200 * expensive.seconds(512)
    drafted, seconds = drive(observer, expensive, 1000, rows=lambda step: 512, accept=0.7)
    assert seconds <= 1.01 * 1000 * expensive.seconds(512)
    assert drafted <= 0.01 * 1000 * 512
    observer = StepCostObserver(prior)
    drive(observer, GPU, 1000, rows=lambda step: 8, accept=0.7)
    assert drive(observer, GPU, 100, rows=lambda step: 8, accept=0.7)[0] > 100 * 8


def test_a_machine_that_changes_is_followed() -> None:
    observer = StepCostObserver()
    drive(observer, CPU, 1000, rows=shrinking)
    slower = CostModel(base=4e-3, row=3e-5, token=2.2e-5, cell=3e-6, ragged=1e-4)
    drive(observer, slower, 2000, rows=shrinking, seed=1)
    assert observer.freeze().seconds(8, 64, 8) == pytest.approx(slower.seconds(8, 64, 8), rel=0.15)


Steps = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 20000), st.integers(0, 128), st.floats(allow_nan=True)), max_size=200
)


@given(Steps)
@settings(deadline=None)
def test_any_steps_give_a_valid_model_and_the_same_one_twice(steps: list[tuple[int, int, int, float]]) -> None:
    first, second = StepCostObserver(), StepCostObserver()
    for rows, drafted, longest, seconds in steps:
        for observer in (first, second):
            observer.observe(rows, drafted, longest, seconds)
        assert first.model == second.model
    assert first.freeze().seconds(1) > 0
    assert len(first._buckets) <= BUCKETS


def test_nothing_observed_is_the_prior() -> None:
    observer = StepCostObserver()
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        observer.observe(4, 0, 0, bad)
    observer.observe(0, 0, 0, 1.0)
    assert observer.observations == 0
    assert observer.model == observer.freeze() == PRIOR


def test_saved_models_come_back(tmp_path: Path) -> None:
    observer = StepCostObserver()
    drive(observer, CPU, 300, rows=shrinking)
    observer.save(tmp_path / "cost.json")
    assert (
        CostModel.load(tmp_path / "cost.json")
        == observer.freeze()
        == StepCostObserver.load(tmp_path / "cost.json").model
    )
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InvalidInputError, match=r"cost\.path"):
        StepCostObserver.load(tmp_path / "bad.json")


@given(st.integers(1, 300), st.integers(0, 900), st.integers(0, 16))
def test_the_fit_prices_a_step_as_the_model_does(rows: int, drafted: int, longest: int) -> None:
    """One formula: what is fitted is the line of `CostModel.seconds`, floor and all."""
    for cost in (CPU, GPU, ROOFLINE, PRIOR):
        line = float(np.array(terms(rows, drafted, longest)) @ np.array(cost.coefficients))
        assert max(line, cost.floor) == pytest.approx(cost.seconds(rows, drafted, longest))


def test_what_leaving_the_graphs_costs_is_learned() -> None:
    """From the steps that do, drafting or not; the others are as fast as before."""
    true = CostModel(base=6e-3, row=1e-5, token=3e-5, ungraphed=2.5e-3)
    observer = StepCostObserver()
    for step in range(600):
        n = shrinking(step)
        drafted, longest, leaves = (4 * n, 4, False) if step % 3 else (n // 2, 1, True)
        observer.observe(
            n, drafted, longest, true.seconds(n, drafted, longest, ungraphed=float(leaves)), ungraphed=leaves
        )
    fitted = observer.freeze()
    assert fitted.ungraphed == pytest.approx(true.ungraphed, rel=0.15)
    assert fitted.seconds(16, 64, 4) == pytest.approx(true.seconds(16, 64, 4), rel=0.05)


def test_an_engine_without_graphs_learns_the_same_as_ever() -> None:
    """The term is a prior that no step touches: nothing else moves."""
    with_it, without = StepCostObserver(), StepCostObserver(replace(PRIOR, ungraphed=0.0))
    for observer in (with_it, without):
        drive(observer, CPU, 300, rows=shrinking)
    for shape in ((8, 0, 0), (8, 16, 4), (64, 200, 8)):
        assert with_it.freeze().seconds(*shape) == pytest.approx(without.freeze().seconds(*shape), rel=1e-9)


def test_the_cost_is_learned_where_nearly_every_step_reads_a_prompt() -> None:
    """Requests come and go in each step of a server; what reading takes is told apart from what drafts take."""
    rng, observer, knows = np.random.default_rng(0), StepCostObserver(), StepCostObserver()
    for step in range(1500):
        rows, drafted, longest = 8 + step % 57, int(rng.integers(0, 300)), 8
        read = 0 if step % 40 == 0 else int(rng.integers(1, rows + drafted + 1))
        exact = CPU.seconds(rows, drafted, longest)
        seconds = (exact + (4e-4 + 4e-5 * read) * (read > 0)) * np.exp(0.1 * rng.normal())
        observer.observe(rows, drafted, longest, seconds, read=read)
        knows.observe(rows, drafted, longest, seconds)
    fitted, misled = observer.freeze(), knows.freeze()
    for n, drafted in ((8, 64), (32, 100), (64, 200)):
        assert fitted.seconds(n, drafted, 8) == pytest.approx(CPU.seconds(n, drafted, 8), rel=0.1)
        assert misled.seconds(n, drafted, 8) > 1.2 * CPU.seconds(n, drafted, 8)  # so that it can fail


def test_kernels_that_are_made_in_first_steps_do_not_stop_drafts() -> None:
    """The first steps of an engine on an H200, whose steps take 3 milliseconds once their kernels are there."""
    observer = StepCostObserver()
    for rows, drafted, longest, seconds in (
        (256, 2048, 8, 4.06), (2, 0, 0, 8.91), (2, 0, 0, 0.026), (1, 0, 0, 4.62), (8, 0, 0, 0.0045), (8, 0, 0, 0.0032),
        (8, 0, 0, 0.0032), (8, 8, 1, 0.947), (8, 16, 2, 0.128),
    ):  # fmt: skip
        observer.observe(rows, drafted, longest, seconds)
    survival = (np.full((8, 1), 0.8) ** np.arange(1, 9)).astype(np.float32)
    drafts = []
    for _ in range(24):
        lengths = allocate(survival, np.full(8, 8, np.int32), observer.model)
        drafts.append(int(lengths.sum()))
        observer.observe(8, drafts[-1], int(lengths.max()), 0.003 + 2e-6 * drafts[-1])
    assert min(drafts[12:]) > 16
