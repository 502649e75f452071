"""What an engine that drafts with rolltree is configured to: V2 where vLLM itself would take it, graphs for its drafts,
the wait in the stream where there is one. A CPU has no graphs: vLLM's own configuration and table are asked.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.vllm import Control, compat, compat_graphs
from rolltree.vllm.graph_sizes import MOST_TOKENS, capture_sizes
from tests.vllm.engines import (
    FIRST_V2,
    OPTIONS,
    VERSION,
    WIDTH,
    assert_same,
    engine,
    generate,
    logged,
    model_runner,
    prompts,
)
from tests.vllm.plain import COUNT
from tests.vllm.test_lengths import table
from tests.vllm.v2.stream import stream_on_cpu

pytestmark = pytest.mark.skipif(VERSION < FIRST_V2, reason="this vLLM has no V2 runner that drafting fits")


@pytest.mark.parametrize("rows", [1, 3, 64, 256, 1024])
def test_sizes_reach_all_drafts_and_pad_little(rows: int) -> None:
    sizes = capture_sizes(rows, WIDTH, 1 << 20)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(max(rows * (1 + WIDTH), 2 * rows), MOST_TOKENS)
    assert len(sizes) < 90
    assert all(b - a <= max(8, b / 8) for a, b in itertools.pairwise(sizes))
    assert capture_sizes(rows, WIDTH, 40)[-1] <= 40


def test_sizes_set_by_hand_stay() -> None:
    def widened(**given: Any) -> Any:
        compilation = SimpleNamespace(cudagraph_capture_sizes=None, max_cudagraph_capture_size=None)
        vars(compilation).update(given)
        speculative = SimpleNamespace(num_speculative_tokens=WIDTH)
        scheduler = SimpleNamespace(max_num_seqs=256, max_num_batched_tokens=8192)
        compat_graphs.widen(
            SimpleNamespace(compilation_config=compilation, speculative_config=speculative, scheduler_config=scheduler)
        )
        return compilation.cudagraph_capture_sizes

    assert widened()[-1] == 256 * (1 + WIDTH)
    assert widened(cudagraph_capture_sizes=[1, 2]) == [1, 2]
    assert widened(max_cudagraph_capture_size=99) is None


def test_another_vllms_graphs_are_left_and_the_log_says_so() -> None:
    with logged() as lines:
        compat_graphs.widen(SimpleNamespace())
        compat_graphs.want_any_lengths(SimpleNamespace())
    assert sum("CUDA graphs are left as they are" in line for line in lines) == 2


def test_full_graphs_of_any_lengths_where_attention_can() -> None:
    """vLLM's own rule for the mode, asked for our engine and for another one, here and as a worker gets it."""
    from vllm.config import CompilationConfig
    from vllm.config.compilation import CUDAGraphMode
    from vllm.v1.attention.backend import AttentionCGSupport

    def resolved(support: str, mode: str = "FULL_AND_PIECEWISE", *, ours: bool = True) -> str:
        config = CompilationConfig(cudagraph_mode=CUDAGraphMode[mode], mode=3)
        if ours:
            compat_graphs.want_any_lengths(SimpleNamespace(compilation_config=config))
        found = config.resolve_cudagraph_mode_and_sizes(
            AttentionCGSupport[support], "FLASH_ATTN", 1 + WIDTH, use_v2_model_runner=True
        )
        return str(found.name)

    assert resolved("ALWAYS") == "FULL"
    assert resolved("ALWAYS", ours=False) == "FULL_AND_PIECEWISE"
    assert resolved("UNIFORM_BATCH") == "FULL_AND_PIECEWISE"
    assert resolved("ALWAYS", "PIECEWISE") == "PIECEWISE"
    assert resolved("NEVER") == resolved("NEVER", ours=False)


def test_every_batch_and_every_length_replays_a_full_graph_then() -> None:
    graphs = compat_graphs.graphs_of(table("FULL", capture_sizes(64, WIDTH, 8192), None))
    assert graphs is not None
    assert graphs.any_lengths
    for rows in (1, 3, 17, 64):
        for drafted in (0, 1, rows, 3 * rows + 1, rows * WIDTH):
            assert graphs.replays(rows, min(drafted, rows * WIDTH), min(drafted, WIDTH))


def test_where_nothing_is_said_the_runner_is_v2_with_graphs_for_drafts(
    greedy: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """V2 is vLLM's own choice then. What the device lacks is left out without a word: drafting waits in the host."""
    widened = list[int]()

    def widen(vllm_config: Any) -> None:
        widened.append(vllm_config.scheduler_config.max_num_seqs)

    monkeypatch.setattr(compat_graphs, "widen", widen)
    with logged() as lines, engine(runner="V2 by default, async") as llm:
        assert_same(greedy, generate(llm, prompts(COUNT)))
        assert Control(llm).stats()["accepted"] > 0
        assert Control(llm).stats()["errors"] == 0
    assert any("Model runner V2, async scheduling." in line for line in lines)
    assert not any("ROLLTREE_WAIT" in line for line in lines)
    assert not widened, "a CPU has no graphs"
    with monkeypatch.context() as patch:
        patch.setattr(compat, "is_cpu", lambda: False)
        for options in ({}, {"graphs": "keep"}):
            with suppress(Exception), engine(runner="V2", max_num_seqs=40, additional_config={"rolltree": options}):
                pass
    assert widened == [40]


def test_no_engine_but_ours_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat_graphs, "widen", lambda vllm_config: pytest.fail("of another engine"))
    monkeypatch.setattr(compat, "is_cpu", lambda: False)
    with engine("none", runner="V2"):
        pass


@pytest.mark.parametrize("options", [{}, {"coupled": True}, {"wait": "stream"}])
def test_kernels_of_verification_are_made_before_the_first_request(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own steps for that verify K drafts of each request, and leave nothing in the trees."""
    from vllm.v1.worker.gpu.sample import states
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    monkeypatch.setattr(states, "apply_min_p", lambda *args: None)  # a kernel that the tests have nothing for
    place = stream_on_cpu() if options.get("wait") == "stream" else nullcontext()
    config = {"rolltree": OPTIONS | options}
    with place, engine(runner="V2", max_num_seqs=4, additional_config=config) as llm:
        runner = model_runner(llm)
        verified = list[int]()
        taken = runner.gather_batch_req_state

        def gather_batch_req_state(schedule: Any, *args: Any) -> Any:
            verified.extend(map(len, schedule.scheduled_spec_decode_tokens.values()))
            return taken(schedule, *args)

        runner.gather_batch_req_state = gather_batch_req_state
        worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        warmup_kernels(runner, worker.execute_model, worker.sample_tokens)
        stats = Control(llm).stats()
        assert verified
        assert set(verified) == {WIDTH}
        assert (stats["errors"], stats["tokens"], stats["row_steps"]) == (0, 0, 0)
        assert generate(llm, prompts(2))
