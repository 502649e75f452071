"""One draft length for all rows in vLLM's V2 runner, vLLM's own graph tables, and its adaptive verification.

A CPU has no graphs: `uniform` is asked for, and what the runner gets to run is looked at. Which steps have graphs is
asked of vLLM's own table, which needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from rolltree.budget import CostModel, allocate
from rolltree.errors import InvalidInputError
from rolltree.serving.lengths import Drafted
from rolltree.vllm import Control, compat_graphs
from rolltree.vllm.draft_lengths import DraftLengths
from tests.vllm.engines import (
    FIRST_V2,
    METHODS,
    OPTIONS,
    VERSION,
    WIDTH,
    assert_same,
    engine,
    generate,
    model_runner,
    prompts,
)
from tests.vllm.plain import COUNT, seeded
from tests.vllm.test_coupled import asked
from tests.vllm.test_v2 import V2

pytestmark = pytest.mark.skipif(VERSION < FIRST_V2, reason="this vLLM has no V2 runner that drafting fits")
BY_BATCH = [(1, 60, WIDTH), (61, 61, 4), (62, 62, 2), (63, 64, 0)]
"""Every batch of the tests has 8 places a row; the rest names the lengths that are captured beside."""
SIZES = {0, 2, 4, WIDTH}
HOLES = {0: 15, 2: 18, 4: 15, WIDTH: 2}
"""Of batches of 1 to 48 requests, those that replay no graph though their length was captured (vLLM 0.32)."""
UNIFORM = {
    "speculative_config": (METHODS["rolltree"] or {}) | {"num_speculative_tokens_per_batch_size": BY_BATCH},
    "additional_config": {"rolltree": OPTIONS | {"lengths": "uniform"}},
}


@contextmanager
def steps(llm: Any) -> Iterator[list[list[int]]]:
    """Query lengths of each decode step that the runner is given, by row."""
    runner, seen = model_runner(llm), list[list[int]]()
    taken = runner.gather_batch_req_state

    def gather_batch_req_state(schedule: Any, *args: Any) -> Any:
        places, counts = schedule.scheduled_spec_decode_tokens, schedule.num_scheduled_tokens
        if all(n == 1 + len(places.get(id, ())) for id, n in counts.items()):
            seen.append(list(counts.values()))
        return taken(schedule, *args)

    runner.gather_batch_req_state = gather_batch_req_state
    try:
        yield seen
    finally:
        del runner.gather_batch_req_state


def assert_uniform(seen: list[list[int]]) -> None:
    """Each step has one length, of those allowed; not always the same one, and drafts in some."""
    assert all(len(set(row)) == 1 for row in seen)
    used = {row[0] - 1 for row in seen}
    assert used <= SIZES
    assert len(used) > 1


@pytest.mark.parametrize("runner", V2)
def test_greedy_text_with_one_length(runner: str, greedy: list[Any]) -> None:
    """Cold and warm: the text of the engine without drafts, in steps whose rows have one query length."""
    with engine(runner=runner, **UNIFORM) as llm:
        with steps(llm) as seen:
            for _ in range(3):
                assert_same(greedy, generate(llm, prompts(COUNT)))
                llm.reset_prefix_cache()
        stats = Control(llm).stats()
    assert_uniform(seen)
    assert stats["errors"] == 0
    assert stats["accepted"] > 1000
    assert stats["fillers"] > 100


def test_fillers_are_counted_apart() -> None:
    """Each row and step gives one token, those of its drafts, and those of its fillers.

    All text is one token over and over, so every filler is right. One of two requests is drafted for, the other is
    filled up beside it.
    """
    from vllm import SamplingParams

    one = {"temperature": 0.0, "allowed_token_ids": [17], "max_tokens": 60, "ignore_eos": True}
    settings = [SamplingParams(**one), SamplingParams(**one, extra_args={"rolltree": {"draft": False}})]
    with engine(runner="V2", **UNIFORM) as llm:
        outputs = llm.generate(prompts(2), settings, use_tqdm=False)
        stats = Control(llm).stats()
    assert [list(output.outputs[0].token_ids) for output in outputs] == [[17] * 60] * 2
    assert stats["tokens"] == 120
    assert stats["accepted"] > 20
    assert stats["fillers_accepted"] > 20
    made = stats["row_steps"] + stats["accepted"] + stats["fillers_accepted"]
    assert 0 <= made - stats["tokens"] <= 2 * WIDTH  # what stands behind the last token of each is no text
    assert stats["accepted"] <= stats["drafted"]
    assert stats["fillers_accepted"] <= stats["fillers"]
    assert stats["row_steps"] < 60


@pytest.mark.parametrize("runner", V2)
def test_a_seed_gives_the_same_rollout_with_one_length(runner: str, sampled: dict[float, list[list[int]]]) -> None:
    """Coupled; then structured batches, which stay whole, with text and log-probabilities as with drafting paused."""
    options = OPTIONS | {"lengths": "uniform", "coupled": True}
    with engine(runner=runner, **UNIFORM | {"additional_config": {"rolltree": options}}) as llm:
        with steps(llm) as seen:
            for _ in range(3):
                assert seeded(llm, 1.0) == sampled[1.0]
        assert_uniform(seen)
        control = Control(llm)
        control.pause()
        right = asked(llm, "structured")
        control.resume()
        for _ in range(2):
            texts, scores = asked(llm, "structured")
            assert texts == right[0]
            np.testing.assert_allclose(scores, right[1], atol=1e-3)
        stats = control.stats()
    assert stats["errors"] == 0
    assert stats["accepted"] > 1000


@pytest.mark.parametrize("runner", V2)
def test_preempted_requests_with_one_length(runner: str, sampled: dict[float, list[list[int]]]) -> None:
    """Few blocks and few tokens a step: rows lack places, wait and come back."""
    small = {"num_gpu_blocks_override": 10, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 192}
    config = METHODS["rolltree"]
    options = {"rolltree": OPTIONS | {"lengths": "uniform", "coupled": True}}
    with engine(runner=runner, speculative_config=config, additional_config=options, **small) as llm:
        with steps(llm) as seen:
            for _ in range(2):
                assert seeded(llm, 1.0) == sampled[1.0]
        stats = Control(llm).stats()
    assert stats["errors"] == 0
    assert all(len(set(row)) == 1 for row in seen)
    assert {row[0] - 1 for row in seen} == {0, WIDTH}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"lengths": "equal"}, r"additional_config\.rolltree\.lengths|lengths.*auto, ragged, uniform"),
        ({"lengths": "uniform"}, r"additional_config\.rolltree\.lengths.*V1 model runner.*VLLM_USE_V2_MODEL_RUNNER=1"),
    ],
)
def test_bad_lengths_are_refused(given: dict[str, str], name: str) -> None:
    """In the V1 runner, which verifies what there is, and by an unknown name."""
    with pytest.raises(Exception, match=name), engine(additional_config={"rolltree": OPTIONS | given}):
        pass


# What vLLM's own table of graphs says, without a graph.


def table(mode: str, sizes: list[int], schedule: list[tuple[int, int, int]] | None, *, seqs: int = 64) -> Any:
    """A runner whose graph manager has made its table, and taken its graphs for captured."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    manager = object.__new__(CudaGraphManager)
    speculative = SimpleNamespace(
        num_speculative_tokens=WIDTH,
        num_speculative_tokens_per_batch_size=schedule,
        uses_dynamic_speculative_decoding=lambda: schedule is not None,
    )
    manager.vllm_config = SimpleNamespace(
        speculative_config=speculative,
        num_speculative_tokens=WIDTH,
        cache_config=SimpleNamespace(use_kda_recoverssm=False),
        scheduler_config=SimpleNamespace(max_num_seqs=seqs),
    )
    manager.compilation_config = SimpleNamespace(cudagraph_capture_sizes=sizes, max_cudagraph_capture_size=max(sizes))
    manager.cudagraph_mode, manager.decode_query_len, manager.max_num_reqs = CUDAGraphMode[mode], 1 + WIDTH, seqs
    manager.varlen_decode, manager.ubatch_runner, manager.lora_capture_cases = False, None, [0]
    manager._lora_dispatch_map, manager._max_lora_case = manager._build_lora_dispatch_map()
    manager._candidates, manager._capture_descs, manager._graphs_captured = {}, {}, True
    manager._init_candidates()
    manager.graphs = dict.fromkeys(manager._capture_descs.get(CUDAGraphMode.FULL, []))
    return SimpleNamespace(cudagraph_manager=manager)


def default_sizes(tiers: list[tuple[int, int]], most: int) -> list[int]:
    """Capture sizes as vLLM 0.32 derives them: a grid of tokens, and requests times query length of each tier."""
    counts = [1, 2, 4, *range(8, 65, 8)]
    own = {n * query for query, requests in tiers for n in counts if n <= requests and n * query <= most}
    return sorted({1, 2, 4, *range(8, 257, 8)} | own)


def test_uniform_steps_of_the_widest_drafts_alone_have_full_graphs() -> None:
    """vLLM's default: neither ragged steps nor those without drafts replay one."""
    graphs = compat_graphs.graphs_of(table("FULL_AND_PIECEWISE", default_sizes([(1 + WIDTH, 64)], 576), None))
    assert graphs is not None
    assert not graphs.any_lengths
    for rows in (1, 3, 16, 64):
        assert graphs.replays(rows, rows * WIDTH, WIDTH)
        assert not graphs.replays(rows, 0, 0)
        assert not graphs.replays(rows, 4 * rows, 4)
    assert not graphs.replays(16, 16 * WIDTH - 1, WIDTH)


def test_a_schedule_by_batch_size_captures_more_lengths() -> None:
    """Each of its lengths; `draft_sizes` reads the same from the configuration."""
    sizes = default_sizes([(1 + WIDTH, 60), (5, 61), (3, 62), (1, 64)], 576)
    runner = table("FULL_AND_PIECEWISE", sizes, BY_BATCH)
    graphs = compat_graphs.graphs_of(runner)
    assert graphs is not None
    assert set(compat_graphs.draft_sizes(runner.cudagraph_manager.vllm_config)) == SIZES
    for rows in (8, 16, 48):
        assert all(graphs.replays(rows, rows * size, size) for size in SIZES)
        assert not graphs.replays(rows, rows * 3, 3)


def test_with_more_lengths_some_batches_find_no_graph_of_theirs() -> None:
    """vLLM looks among the graphs of the next captured number of tokens alone, which may be those of another length.

    So what is asked in each step is this table, not the list of lengths; and the length that has a graph is taken.
    """
    graphs = compat_graphs.graphs_of(
        table("FULL_AND_PIECEWISE", default_sizes([(1 + WIDTH, 60), (5, 61), (3, 62), (1, 64)], 512), BY_BATCH)
    )
    assert graphs is not None
    holes = {size: [rows for rows in range(1, 49) if not graphs.replays(rows, rows * size, size)] for size in SIZES}
    assert {size: len(rows) for size, rows in holes.items()} == HOLES
    plan = DraftLengths("uniform", SIZES, widest=WIDTH)
    plan.begin(WIDTH, graphs)
    rows = next(rows for rows in holes[4] if rows not in holes[WIDTH])
    survival = np.cumprod(np.full((rows, WIDTH), 0.7), axis=1).astype(np.float32)
    drafted = Drafted(
        survival=survival, lengths=np.full(rows, 4, np.int32), asked=np.arange(rows), rows=rows, room=10**6,
        cost=CostModel(base=1.0, token=1e-3, ungraphed=0.5),
    )  # fmt: skip
    assert plan.cut(drafted).tolist() == [4] * rows
    assert plan.length == WIDTH  # four fillers a row are cheaper here than a step piece by piece


def test_full_graphs_of_all_steps_need_no_one_length() -> None:
    graphs = compat_graphs.graphs_of(table("FULL", default_sizes([(1 + WIDTH, 64)], 576), None))
    assert graphs is not None
    assert graphs.any_lengths
    assert graphs.replays(16, 37, WIDTH)


@pytest.mark.parametrize("mode", ["NONE", "PIECEWISE"])
def test_without_full_graphs_drafts_stay_ragged(mode: str) -> None:
    assert compat_graphs.graphs_of(table(mode, [1, 2, 4, 8, 16], None)) is None
    assert compat_graphs.graphs_of(SimpleNamespace()) is None


def test_another_vllms_table_is_not_asked() -> None:
    """Its drafts stay ragged, too; no step fails by it."""

    class Other:
        graphs: ClassVar[dict[object, object]] = {object(): None}

        def dispatch(self, shape: object) -> None:
            raise AssertionError

    assert compat_graphs.graphs_of(SimpleNamespace(cudagraph_manager=Other())) is None


# Adaptive verification.


def test_our_side_of_adaptive_verification(greedy: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the manager, which needs a GPU: schedules stay whole, chances go with the drafts, and what was verified
    is read from the device."""
    from vllm.v1.worker.gpu import model_runner as runners

    from rolltree.vllm import checks, speculator

    monkeypatch.setattr(speculator, "is_adaptive", lambda config: True)
    monkeypatch.setattr(runners, "maybe_create_adaptive_verification_manager", lambda **_: None)
    assert checks.adaptive is not speculator
    with engine(runner="V2") as llm:
        chances = model_runner(llm).speculator.draft_token_confidence_probs
        with steps(llm) as seen:
            for _ in range(2):
                assert_same(greedy, generate(llm, prompts(COUNT)))
        stats = Control(llm).stats()
        assert chances.shape == (64, WIDTH)
        assert ((chances >= 0) & (chances <= 1)).all()
        assert chances.any()
    assert {row[0] for row in seen[1:]} == {1 + WIDTH}
    assert stats["errors"] == 0
    assert stats["accepted"] > 500
    assert stats["drafted"] + stats["fillers"] == pytest.approx(WIDTH * stats["row_steps"], rel=0.1)


class Nothing:
    """In the place of streams and events."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture(name="manager")
def fixture_manager(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's manager for 4 slots, with a step cost of 1 + 0.2 for each token."""
    from contextlib import nullcontext

    from tests.vllm.v2.no_triton import v2_on_cpu

    with v2_on_cpu(async_scheduling=False):
        from vllm.v1.worker.gpu.spec_decode import adaptive_verification as theirs
    monkeypatch.setattr(torch.cuda, "Stream", Nothing)
    monkeypatch.setattr(torch.cuda, "Event", Nothing)
    monkeypatch.setattr(torch.cuda, "current_stream", Nothing)
    monkeypatch.setattr(theirs, "stream", lambda *_: nullcontext())
    monkeypatch.setattr(theirs, "_assign_draft_token_budget_compiled", theirs._assign_draft_token_budget)
    states = SimpleNamespace(
        num_speculative_steps=WIDTH,
        device=torch.device("cpu"),
        max_num_reqs=4,
        max_num_batched_tokens=64,
        req_id_to_index={"a": 2, "b": 0, "c": 3},
        num_computed_tokens_np=np.full(4, 10, np.int32),
        prefill_len=SimpleNamespace(np=np.full(4, 10, np.int32)),
    )
    manager = theirs.AdaptiveVerificationManager(states, torch.zeros(5, dtype=torch.int32), 1, max_total_logits=1000)
    verify = [(n, 1 + 0.2 * n) for n in range(1, 65)]
    manager.cost_tables = theirs.build_cost_tables_from_curves([(1, 0.0), (4, 0.0)], verify, 4, 64)
    for slot in range(4):
        manager.add_request(slot)
    return manager


def test_vllms_manager_keeps_the_drafts_that_our_budget_would(manager: Any) -> None:
    """By our chances, at the same step cost: the same number of drafts of each row, and none behind a draft's end."""
    from rolltree.vllm.adaptive import conditional

    ids, lengths = ["a", "b", "c"], np.array([8, 3, 0], np.int32)
    survival = np.cumprod(np.array([[0.95] * 8, [0.7] * 8, [0.9] * 8]), axis=1).astype(np.float32)
    chances = torch.from_numpy(conditional(survival, lengths))
    slots = torch.tensor([2, 0, 3])
    for _ in range(2):  # its budget reads what was recorded a step before
        manager.record_confidences(chances, SimpleNamespace(num_reqs=3, idx_mapping=slots))
    drafts = {id: [-1] * WIDTH for id in ids}
    total = manager.get_num_tokens(dict.fromkeys(ids, 1 + WIDTH), drafts)
    right = allocate(survival, lengths, CostModel(base=1.0, token=0.2))
    assert total == 3 + right.sum()
    assert 0 < right.sum() < lengths.sum()
    counts, _ = manager.compact_batch(np.full(3, WIDTH), np.full(3, 1 + WIDTH), np.arange(4, dtype=np.int32) * 9)
    assert counts.sum() == total
    logits, starts, budget = manager.reallocate_drafts(ids, slots)
    assert (np.diff(logits) - 1).tolist() == right.tolist() == (np.diff(starts[:4]) - 1).tolist()
    assert budget == right.sum()


ADAPTIVE = (METHODS["rolltree"] or {}) | {"enable_adaptive_verification": True}


@pytest.mark.parametrize(
    ("runner", "why"), [("V1", "adaptive"), ("V2", "requires full CUDA graphs|enable_adaptive_verification")]
)
def test_adaptive_verification_is_refused_where_it_cannot_work(runner: str, why: str) -> None:
    """By vLLM, which looks before us: in the V1 runner, and on a CPU, which has no graphs."""
    with pytest.raises(ValueError, match=why), engine(runner=runner, speculative_config=ADAPTIVE):
        pass


def test_adaptive_verification_is_refused_by_us_too() -> None:
    """Each reason with its fix, should vLLM not have looked."""
    from vllm.config.compilation import CUDAGraphMode

    from rolltree.serving.options import EngineOptions
    from rolltree.vllm import adaptive

    def check(mode: str, *, is_v2: bool = True, **options: Any) -> None:
        config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mode=CUDAGraphMode[mode]))
        adaptive.check(config, EngineOptions(**options), is_v2=is_v2, where="additional_config.rolltree")

    check("FULL_AND_PIECEWISE")
    with pytest.raises(InvalidInputError, match=r"enable_adaptive_verification.*V1.*VLLM_USE_V2_MODEL_RUNNER=1"):
        check("FULL", is_v2=False)
    with pytest.raises(InvalidInputError, match=r"enable_adaptive_verification.*PIECEWISE.*enforce_eager"):
        check("PIECEWISE")
    with pytest.raises(InvalidInputError, match=r"rolltree\.lengths.*uniform"):
        check("FULL", lengths="uniform")
