"""A whole step as one native call: drafts and sums are those of the drafter's two calls, on whatever thread it runs."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

from rolltree import TreeDrafter
from rolltree._native import Forest, Step
from rolltree.budget import CostModel
from rolltree.config import DraftConfig
from rolltree.errors import InvalidInputError

ROWS, WIDTH, STEPS, LENGTH = 6, 4, 40, 256
COST = CostModel(base=1.0, token=0.01)
PROMPT = [1, 2, 3]


def drafter() -> TreeDrafter:
    made = TreeDrafter(config=DraftConfig(max_draft=WIDTH), cost=COST)
    for seed in range(4):
        made.cache.add(PROMPT, model(np.random.default_rng(seed).integers(0, 5, 3).tolist(), 60)[3:])
    return made


def model(text: list[int], length: int) -> list[int]:
    """Continue a text, by the text alone."""
    while len(text) < length:
        text.append((3 * text[-1] + text[-2] + (len(text) % 13 == 0)) % 9)
    return text


def emitted(row: list[int], draft: list[int]) -> list[int]:
    """The tokens of a step: accepted drafts and the one behind them."""
    whole = model(list(row), len(row) + len(draft) + 1)[len(row) :]
    right = next((i for i, (ours, true) in enumerate(zip(draft, whole, strict=False)) if ours != true), len(draft))
    return whole[: right + 1]


def test_a_thread_that_plays_the_stream_drafts_as_the_drafter_does() -> None:
    """The entry is called by its address, as a stream would; the drafter gets the same text in the same order."""
    plain, ours = drafter(), drafter()
    handles = np.array([plain.open(PROMPT) for _ in range(ROWS)])
    step = Step(ours.cache._forest, ROWS, WIDTH)
    step.sessions[:] = [ours.open(PROMPT) for _ in range(ROWS)]
    step.known[:] = step.lengths[:] = len(PROMPT)
    step.slots[:], step.ends[:], step.limits[:] = np.arange(ROWS)[::-1], LENGTH, [4, 3, 2, 1, 0, 4]
    rows, text = [[*PROMPT] for _ in range(ROWS)], np.zeros((ROWS, LENGTH), np.int32)
    function, argument = step.entry
    enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    drafts: list[list[int]] = [[] for _ in rows]
    for done in range(STEPS):
        new = [emitted(row, draft) for row, draft in zip(rows, drafts, strict=True)]
        new[done % ROWS] = []  # a row that waits
        for b, tokens in enumerate(new):
            rows[b] += tokens
            text[step.slots[b], : len(rows[b])] = rows[b]
        step.counts[:], step.lengths[:] = list(map(len, new)), list(map(len, rows))
        step.begin(ROWS, text, vocabulary=9, room=100, min_survival=0.05, min_match=1, budget=True, **COST.named)
        stream = threading.Thread(target=enter, args=(argument,))
        stream.start()
        stream.join()
        assert step.done == done + 1
        live = np.flatnonzero(step.counts)
        plain.advance(handles[live], np.concatenate([new[b] for b in live]), np.cumsum([0, *step.counts[live]]))
        batch = plain.draft(handles[live], step.limits[live])
        drafts = [[] for _ in rows]
        for i, b in enumerate(live.tolist()):
            drafts[b] = batch.tokens[i, : batch.lengths[i]].tolist()
        assert [row[1 : 1 + row[0]].tolist() for row in step.drafts] == drafts
    assert step.sums == (plain.stats.tokens, plain.stats.drafted, plain.stats.accepted, 0)
    assert plain.stats.accepted > 50
    assert step.known.tolist() == list(map(len, rows))


def test_what_does_not_fit_is_refused() -> None:
    step = Step(Forest(), 2, 4)
    plan = {"vocabulary": 9, "room": 1, "min_survival": 0.1, "min_match": 1}
    with pytest.raises(InvalidInputError, match="Step"):
        step.begin(3, np.zeros((2, 8), np.int32), **plan)
    with pytest.raises(TypeError):  # a copy would be read in the place of the text
        step.begin(2, np.zeros((2, 8), np.int64), **plan)
    with pytest.raises(InvalidInputError, match="Step"):
        Step(Forest(), 0, 4)
