"""Admission: which waiting requests get a row, and the prefill of their prompts, shared by the samples of a
prompt.

All prompt tokens but the last go into the cache; the last is the first verify step's committed token. A
prompt that a running row already holds is copied, not computed. Does not decide when requests end.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from rolltree.engine.rows import Job, Rows
from rolltree.engine.runner import Runner
from rolltree.engine.slots import SlotCache
from rolltree.engine.stats import EngineStats
from rolltree.types import Int32Array


def seat(waiting: deque[Job], rows: Rows, cache: SlotCache) -> list[int]:
    """Give rows to waiting requests, holes first; close the holes that remain. Returns the new rows, oldest
    first.
    """
    holes, slots, seated = rows.holes(), len(rows.jobs), []
    while waiting and (holes or rows.count < slots):
        row = holes.pop(0) if holes else rows.count
        rows.count = max(rows.count, row + 1)
        rows.place(row, waiting.popleft())
        seated.append(row)
    close_holes(rows, cache)
    return seated


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


def prefill(new: list[int], rows: Rows, runner: Runner, limit: int, stats: EngineStats) -> None:
    """Fill the cache of the rows `new`; at most about `limit` prompt tokens in one forward."""
    fresh, copies = _share(new, rows)
    for batch in _batches(fresh, rows, limit):
        at, pieces, start = zip(*batch, strict=True)
        runner.prefill(np.array(at), list(pieces), np.array(start))
        stats.prefilled += sum(len(piece) for piece in pieces)
    if copies:
        stats.shared += _copy(copies, rows, runner.cache)


def _share(new: list[int], rows: Rows) -> tuple[list[int], list[tuple[int, int]]]:
    """Split new rows into those to compute and (donor, row) pairs to copy."""
    arrived = set(new)
    donors = {
        job.prompt_bytes: r for r, job in enumerate(rows.jobs[: rows.count]) if job and r not in arrived
    }
    fresh, copies = [], []
    for row in new:
        job = rows.jobs[row]
        assert job is not None
        donor = donors.setdefault(job.prompt_bytes, row)
        if len(job.prompt) == 1:
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


def _copy(copies: list[tuple[int, int]], rows: Rows, cache: SlotCache) -> int:
    """Copy prompts between rows in one go; returns the tokens copied."""
    counts = [int(rows.prompt[row]) - 1 for _, row in copies]
    source = np.concatenate(
        [donor * cache.length + np.arange(n) for (donor, _), n in zip(copies, counts, strict=True)]
    )
    target = np.concatenate(
        [row * cache.length + np.arange(n) for (_, row), n in zip(copies, counts, strict=True)]
    )
    device = cache.data.device
    cache.move(torch.from_numpy(source).to(device), torch.from_numpy(target).to(device))
    return sum(counts)
