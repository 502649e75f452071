"""t(N): seconds of a verify step by batch size and tokens a row, and the cost model that fits them.

The drafts are useless on purpose: all of them are verified, none is kept. Each point is the fastest of a few steps,
which end with a copy to the host, so the device has finished. `rolltree replay --cost` and the budget read the model.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from rolltree.budget import CostModel
from rolltree.engine import Engine, EngineConfig
from rolltree.engine.cost import FixedLengths, fastest_step
from rolltree.engine.runner import is_out_of_memory
from rolltree.errors import CapacityError
from rolltree.step_cost import StepCostObserver

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DRAFTS = (0, 1, 3, 7, 15)
PROFILED_STEPS = 10


def measure_curves(
    model: PreTrainedModel, *, batches: Sequence[int] = BATCHES, drafts: Sequence[int] = DRAFTS, prompt: int = 256,
    compile: bool = False, progress: Callable[[str], None] = lambda case: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One point for every (rows, drafted tokens a row): `{rows, draft, tokens, seconds}`; what has no room is left out.

    Args:
        model: in evaluation mode.
        batches: rows.
        drafts: drafted tokens of every row.
        prompt: tokens of context of every row.
        compile: the sampler, too.
        progress: called with each case.

    """
    points = []
    for rows in sorted(batches):
        for engine, drafter in _engine(model, rows, max(drafts), prompt, compile):
            for length in drafts:
                progress(f"{rows} rows, {length} drafted")
                drafter.length = length
                try:
                    seconds = fastest_step(engine, rows, prompt)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    continue
                points.append({"rows": rows, "draft": length, "tokens": rows * (1 + length), "seconds": seconds})
    return points


def _engine(
    model: PreTrainedModel, rows: int, longest: int, prompt: int, compile: bool
) -> Iterator[tuple[Engine, FixedLengths]]:
    """An engine for so many rows; none where the memory is too small."""
    drafter = FixedLengths()
    room = prompt + 16 * (longest + 1)
    config = EngineConfig(slots=rows, max_length=room, max_draft=max(longest, 1), compile=compile)
    try:
        engine = Engine(model, config, drafter)
    except CapacityError:
        return
    yield engine, drafter


def fit(points: Sequence[dict[str, Any]]) -> CostModel:
    """The cost model of the points, with a floor where the weights' streaming shows."""
    observer = StepCostObserver()
    for _ in range(3):  # the observer wants to see a shape more than once before it believes it
        for p in points:
            observer.observe(p["rows"], p["rows"] * p["draft"], p["draft"], p["seconds"])
    return observer.model


def profile_steps(
    model: PreTrainedModel, folder: Path, *, rows: int, draft: int = 4, prompt: int = 256, compile: bool = False
) -> dict[str, Any]:
    """Profile a few steady steps; writes `profile.txt` (by operator) and `profile.json.gz` (for a trace viewer).

    Returns:
        `{rows, draft, steps, kernels_per_step, syncs_per_step, table}`; a sync is a call that waits for the device.

    """
    drafter = FixedLengths()
    drafter.length = draft
    room = prompt + (PROFILED_STEPS + 8) * (draft + 1)
    config = EngineConfig(slots=rows, max_length=room, max_draft=max(draft, 1), compile=compile)
    engine = Engine(model, config, drafter)
    fastest_step(engine, rows, prompt, steps=3, stay=True)
    cuda = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            engine.step()
    averages = profiler.key_averages()
    text = averages.table(sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total", row_limit=40)
    (folder / "profile.txt").write_text(text)
    _write_trace(profiler, folder / "profile.json.gz")
    count: dict[str, int] = {event.key: event.count for event in averages}
    kernels = sum(n for key, n in count.items() if "LaunchKernel" in key)
    syncs = sum(n for key, n in count.items() if key in _SYNCS)
    return {
        "rows": rows, "draft": draft, "steps": PROFILED_STEPS, "kernels_per_step": kernels / PROFILED_STEPS,
        "syncs_per_step": syncs / PROFILED_STEPS, "table": str(folder / "profile.txt"),
    }  # fmt: skip


_SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")


def _write_trace(profiler: torch.profiler.profile, path: Path) -> None:
    plain = path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    with plain.open("rb") as source, gzip.open(path, "wb") as target:
        shutil.copyfileobj(source, target)
    plain.unlink()
