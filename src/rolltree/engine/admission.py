"""Admission: which waiting requests get a row, and the prefill of their prompts, shared by the samples of a
prompt.

All prompt tokens but the last go into the cache; the last is the first verify step's committed token. A
prompt that a running row already holds is copied, not computed. Does not decide when requests end.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from rolltree.engine.kv_cache import SlotCache
from rolltree.engine.runner import Runner, is_out_of_memory
from rolltree.engine.running import Job, Rows
from rolltree.engine.stats import EngineStats
from rolltree.types import Int32Array

SMALL_PREFILL = 64
"""Tokens of a prefill forward after the usual size ran out of memory."""


def seat(waiting: deque[Job], rows: Rows, cache: SlotCache) -> list[int]:
    """Give rows to waiting requests and close the holes that remain; the new rows, oldest request first."""
    holes, seated = rows.holes(), set[int]()
    while waiting and (holes or rows.count < len(rows.jobs)):
        job = waiting.popleft()
        row = _best_hole(holes, rows, job) if holes else rows.count
        rows.count = max(rows.count, row + 1)
        rows.place(row, job)
        seated.add(job.id)
    close_holes(rows, cache)
    return [row for _, row in sorted((j.id, r) for r, j in enumerate(rows.jobs) if j and j.id in seated)]


def _best_hole(holes: list[int], rows: Rows, job: Job) -> int:
    """Take a hole that holds the prompt already, else the first."""
    match = next((i for i, row in enumerate(holes) if rows.cached[row] == job.prompt_bytes), 0)
    return holes.pop(match)


def close_holes(rows: Rows, cache: SlotCache) -> None:
    """Move rows from the end into holes, so that rows 0..count-1 are live."""
    holes = rows.holes()
    while holes:
        last = rows.count - 1
        if rows.jobs[last] is None:
            holes.pop()
        else:
            hole = holes.pop(0)
            cache.copy_row(last, hole, int(rows.length[last]) - 1)
            rows.move(last, hole)
        rows.count = last


def admit(
    waiting: deque[Job], rows: Rows, runner: Runner, limit: int, stats: EngineStats
) -> tuple[list[int], list[int]]:
    """Seat waiting requests and prefill their prompts, at most `limit` tokens in one forward.

    Returns:
        The rows that were given away and are ready, and those whose prompts need more memory than there is.

    """
    new = seat(waiting, rows, runner.cache)
    if not new or _has_room(new, rows, runner, limit, stats):
        return new, []
    # One by one, so that only a prompt that is too much by itself fails.
    fits = {row: _has_room([row], rows, runner, SMALL_PREFILL, stats) for row in new}
    return [row for row in new if fits[row]], [row for row in new if not fits[row]]


def _has_room(new: list[int], rows: Rows, runner: Runner, limit: int, stats: EngineStats) -> bool:
    """Prefill; False where memory ran out."""
    try:
        prefill(new, rows, runner, limit, stats)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        stats.out_of_memory += 1
        return False
    return True


def prefill(new: list[int], rows: Rows, runner: Runner, limit: int, stats: EngineStats) -> None:
    """Make the rows `new` ready; at most `limit` prompt tokens in one forward."""
    fresh, copies = _share(new, rows)
    for batch in _batches(fresh, rows, limit):
        at, pieces, start = zip(*batch, strict=True)
        runner.prefill(np.array(at), list(pieces), np.array(start))
        stats.prefilled += sum(len(piece) for piece in pieces)
    if copies:
        _copy(copies, rows, runner.cache)
    stats.shared += sum(int(rows.prompt[row]) - 1 for row in set(new) - set(fresh))
    rows.ready[new] = True


def _share(new: list[int], rows: Rows) -> tuple[list[int], list[tuple[int, int]]]:
    """The new rows to compute, and the (donor, row) pairs to copy."""
    donors = {job.prompt_bytes: r for r, job in enumerate(rows.jobs[: rows.count]) if job and rows.ready[r]}
    fresh, copies = [], []
    for row in new:
        job = rows.job(row)
        donor = donors.setdefault(job.prompt_bytes, row)
        if rows.ready[row] or len(job.prompt) == 1:
            continue
        if donor == row:
            fresh.append(row)
        else:
            copies.append((donor, row))
    return fresh, copies


def _batches(fresh: list[int], rows: Rows, limit: int) -> list[list[tuple[int, Int32Array, int]]]:
    """Prompts as (row, piece, start), in forwards of at most `limit` tokens, a row once in each."""
    batches: list[list[tuple[int, Int32Array, int]]] = []
    size = limit
    for row in sorted(fresh, key=lambda r: int(rows.prompt[r])):  # equal lengths side by side: little padding
        tokens = rows.tokens[row, : rows.prompt[row] - 1]
        for start in range(0, len(tokens), limit):
            piece = tokens[start : start + limit]
            if start or size + len(piece) > limit:
                batches.append([])
                size = 0
            batches[-1].append((row, piece, start))
            size += len(piece)
    return batches


def _copy(copies: list[tuple[int, int]], rows: Rows, cache: SlotCache) -> None:
    """Copy prompts between rows in one go."""
    counts = [int(rows.prompt[row]) - 1 for _, row in copies]
    source = np.concatenate([donor * cache.length + np.arange(n) for (donor, _), n in zip(copies, counts, strict=True)])
    target = np.concatenate([row * cache.length + np.arange(n) for (_, row), n in zip(copies, counts, strict=True)])
    device = cache.data.device
    cache.move(torch.from_numpy(source).to(device), torch.from_numpy(target).to(device))
