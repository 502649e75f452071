"""Parts of the engine by themselves: layouts, tree masks, path compaction, chunked sampling, the step cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree.engine import Engine, EngineConfig, Request
from rolltree.engine.cost import measure_cost
from rolltree.engine.layout import Layout, Trees
from rolltree.sampling import RowParams, SamplingParams
from tests.engine_tools import prompts, tiny_model

torch.set_num_threads(1)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=9))
@settings(deadline=None)
def test_layout_round_trip(counts: list[int]) -> None:
    layout = Layout.of(np.array(counts))
    packed = np.arange(sum(counts))
    grid = layout.grid
    assert layout.ragged == (len(set(counts)) > 1)
    np.testing.assert_array_equal(grid.ravel()[layout.cells], packed)
    for row, count in enumerate(counts):
        np.testing.assert_array_equal(grid[row, :count], packed[layout.row_of == row])
        assert (grid[row, count:] == grid[row, count - 1]).all()
        np.testing.assert_array_equal(layout.node[layout.row_of == row], np.arange(count))
    covered = np.zeros(grid.shape, int)
    for block in layout.blocks:
        rows = np.arange(len(counts)) if block.rows is None else block.rows
        covered[rows, block.first : block.first + block.queries] += 1
    assert (covered[np.arange(layout.queries) < np.array(counts)[:, None]] == 1).all()
    assert sum(counts) <= layout.padded <= grid.size


def test_few_long_drafts_get_a_rectangle_of_their_own() -> None:
    layout = Layout.of(np.array([1] * 30 + [9, 7]))
    assert [(b.first, b.queries) for b in layout.blocks] == [(0, 1), (1, 8)]
    assert layout.padded == 32 + 16


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("split", [False, True])
def test_tree_logits_are_those_of_plain_forwards(family: str, split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged trees over ragged prefixes; then again after an accepted path was moved into place."""
    monkeypatch.setattr("rolltree.engine.layout.SPLIT_GAIN", 10.0 if split else 0.0)
    engine = Engine(tiny_model(family), EngineConfig(slots=4, max_length=64, max_draft=8))
    runner, cache, rng = engine._runner, engine._cache, np.random.default_rng(0)
    before = [rng.integers(0, 23, n).astype(np.int32) for n in (5, 17, 1, 30)]
    start = np.array([len(p) for p in before])
    shapes = [[0, 0, 0, 1, 1, 3], [0, 0], [0], [0, 0, 1, 2, 0]]  # parents, the root's own first
    counts = np.array([len(s) for s in shapes])
    layout = Layout.of(counts)
    assert len(layout.blocks) == 1 + split
    padded = np.array([s + [0] * (layout.queries - len(s)) for s in shapes])
    trees = Trees.of(padded)
    tokens = rng.integers(0, 23, int(counts.sum()))
    with runner.active():
        runner.prefill(np.arange(4), before, np.zeros(4, np.int64))
        logits = runner.logits(layout, tokens, start, trees)
        for i, (row, node) in enumerate(zip(layout.row_of, layout.node, strict=True)):
            path = np.flatnonzero(trees.ancestors[row, node])
            prefix = np.concatenate((before[row], tokens[layout.grid[row, path]]))
            assert (runner.plain_logits(prefix)[0] - logits[i]).abs().max() < 1e-4
        path = np.array([0, 1, 3, 5])  # of row 0
        places = torch.from_numpy(start[0] + path), torch.from_numpy(start[0] + np.arange(4))
        cache.move(*places)
        following = np.concatenate((before[0], tokens[path], [7]))
        one = runner.logits(Layout.of(np.array([1])), np.array([7]), start[:1] + 4, None)
        assert (runner.plain_logits(following)[0] - one[0]).abs().max() < 1e-4


def test_sampling_in_chunks_changes_nothing() -> None:
    batch = [
        Request(p, SamplingParams(max_tokens=12, seed=i, temperature=0.5 + i % 3, top_k=i % 4))
        for i, p in enumerate(prompts(12))
    ]
    whole, chunked = (
        Engine(tiny_model(), EngineConfig(slots=12, max_length=64, sample_elements=n)).generate(batch)
        for n in (1 << 20, 50)
    )
    assert [r.token_ids for r in whole] == [r.token_ids for r in chunked]


def test_half_precision_runs() -> None:
    model = tiny_model().to(torch.bfloat16)
    engine = Engine(model, EngineConfig(slots=4, max_length=64))
    results = engine.generate([Request(p, SamplingParams(max_tokens=10, seed=1)) for p in prompts(6)])
    assert [len(r.token_ids) for r in results] == [10] * 6
    assert engine.stats.tie_recomputes == 0


def test_progress_and_results_of_others() -> None:
    engine = Engine(tiny_model(), EngineConfig(slots=2, max_length=64))
    other = engine.submit(Request([1], SamplingParams(max_tokens=2, seed=0)))
    seen: list[tuple[int, int]] = []
    results = engine.generate(
        [Request([2], SamplingParams(max_tokens=3, seed=i)) for i in range(4)], lambda *a: seen.append(a)
    )
    assert seen[-1] == (4, 4)
    assert [r.id for r in engine.step()] == [other]
    assert len({r.id for r in results} | {other}) == 5
    assert engine.stats.seconds["forward"] > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NovelParams(SamplingParams):
    """Sampling settings with a field that the sampler has yet to learn."""

    novelty: float = 0.0


@pytest.mark.parametrize(("novelty", "records"), [(0.0, 1), (0.5, 2)])
def test_a_new_policy_field_is_not_taken_for_shared(novelty: float, records: int) -> None:
    """Rows that differ in any field but limits, stops and seed keep settings of their own."""
    never = 2**31 - 1  # beyond the vocabulary
    settings = (NovelParams(max_tokens=3, seed=0), NovelParams(max_tokens=4, stop_token_ids=(never,), novelty=novelty))
    assert len(RowParams.of(settings).host) == records
    engine = Engine(tiny_model(), EngineConfig(slots=2, max_length=64))
    for sampling in settings:
        engine.submit(Request([1, 2], sampling))
    engine.step()
    assert engine._params is not None
    assert len(engine._params.host) == records


def test_measured_cost_grows_with_tokens() -> None:
    cost = measure_cost(tiny_model(), slots=8, max_draft=7)
    assert cost.seconds(8, 56) > cost.seconds(1, 0) > 0
