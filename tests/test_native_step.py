"""A whole step as one native call: drafts and sums are those of the drafter's two calls, on whatever thread it runs."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

from rolltree import TreeDrafter
from rolltree._native import Forest, Step, Turn
from rolltree.budget import CostModel
from rolltree.config import DraftConfig
from rolltree.errors import InvalidInputError

ROWS, WIDTH, STEPS, LENGTH, TURNS = 6, 4, 40, 256, 3
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
    buffers = np.zeros((TURNS, ROWS * (3 + WIDTH)), np.int32)
    step = Step(ours.cache._forest, ROWS, WIDTH, buffers)
    sessions = [ours.open(PROMPT) for _ in range(ROWS)]
    rows, text = [[*PROMPT] for _ in range(ROWS)], np.zeros((ROWS, LENGTH), np.int32)
    drafts: list[list[int]] = [[] for _ in rows]
    for done in range(STEPS):
        new = [emitted(row, draft) for row, draft in zip(rows, drafts, strict=True)]
        new[done % ROWS] = []  # a row that waits
        turn = step.next()
        assert turn is not None
        fill(turn, sessions)
        for b, tokens in enumerate(new):
            rows[b] += tokens
            text[turn.slots[b], : len(rows[b])] = rows[b]
        counts, lengths, made = parts(buffers[done % TURNS])
        counts[:], lengths[:] = list(map(len, new)), list(map(len, rows))
        step.hand_over(ROWS, text, vocabulary=9, room=100, min_survival=0.05, min_match=1, budget=True, **COST.named)
        function, argument = step.entry(turn)
        enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
        stream = threading.Thread(target=enter, args=(argument,))
        stream.start()
        stream.join()
        assert step.done == done + 1
        assert turn.outcome == 0
        assert turn.taken.tolist() == list(map(len, new))
        assert turn.tokens.tolist() == [token for tokens in new for token in tokens]
        live = np.flatnonzero(counts)
        plain.advance(handles[live], np.concatenate([new[b] for b in live]), np.cumsum([0, *counts[live]]))
        batch = plain.draft(handles[live], turn.limits[live])
        drafts = [[] for _ in rows]
        for i, b in enumerate(live.tolist()):
            drafts[b] = batch.tokens[i, : batch.lengths[i]].tolist()
        assert [row[1 : 1 + row[0]].tolist() for row in made] == drafts
    assert step.sums == (plain.stats.tokens, plain.stats.drafted, plain.stats.accepted, 0)
    assert plain.stats.accepted > 50
    assert [ours.cache._forest.generated(session) for session in sessions] == [len(row) - len(PROMPT) for row in rows]


def fill(turn: Turn, sessions: list[int]) -> None:
    """What the host says of a turn."""
    turn.sessions[:], turn.prompts[:] = sessions, len(PROMPT)
    turn.slots[:], turn.ends[:], turn.limits[:] = np.arange(ROWS)[::-1], LENGTH, [4, 3, 2, 1, 0, 4]


def parts(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, lengths and drafts of a turn's buffer."""
    return buffer[:ROWS], buffer[ROWS : 2 * ROWS], buffer[2 * ROWS :].reshape(ROWS, 1 + WIDTH)


def test_what_does_not_fit_is_refused() -> None:
    step = Step(Forest(), 2, 4, np.zeros((1, 14), np.int32))
    plan = {"vocabulary": 9, "room": 1, "min_survival": 0.1, "min_match": 1}
    with pytest.raises(InvalidInputError, match="Step"):
        step.hand_over(3, np.zeros((2, 8), np.int32), **plan)
    with pytest.raises(TypeError):  # a copy would be read in the place of the text
        step.hand_over(2, np.zeros((2, 8), np.int64), **plan)
    with pytest.raises(InvalidInputError, match="turn"):
        step.result(1)
    step.hand_over(2, np.zeros((2, 8), np.int32), **plan)
    assert step.next() is None
    with pytest.raises(InvalidInputError, match=r"Step\.turns"):
        step.hand_over(2, np.zeros((2, 8), np.int32), **plan)
    step.take_back()
    assert step.next() is not None
    with pytest.raises(InvalidInputError, match="Step"):
        Step(Forest(), 0, 4, np.zeros((1, 0), np.int32))
    with pytest.raises(InvalidInputError, match="buffers"):
        Step(Forest(), 2, 4, np.zeros((1, 13), np.int32))
