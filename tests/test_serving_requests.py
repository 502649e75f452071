"""Which text belongs to which request: a small engine of rows moves, preempts, skips and re-uses them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rolltree.cache import RolloutCache
from rolltree.serving.batch import Batch, Work
from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import RequestOptions
from rolltree.serving.requests import RequestBook

WIDTH = 64


class Engine:
    """Rows of a persistent batch as vLLM keeps them: requests swap rows, and old text stays in the rows."""

    def __init__(self, book: RequestBook, rows: int = 4) -> None:
        self.book = book
        self.tokens = np.full((rows, WIDTH), 99, np.int32)
        self.text: dict[str, list[int]] = {}
        self.requests: dict[str, ServedRequest] = {}

    def start(self, id: str, prompt: list[int], **facts: object) -> None:
        self.text[id] = list(prompt)
        self.requests[id] = ServedRequest(prompt=prompt, **facts)  # type: ignore[arg-type]

    def step(self, sampled: dict[str, list[int]], *, tell: bool = True) -> Work | None:
        """Sample for the requests named, in that order of rows; `tell=False`: the host does not ask for drafts."""
        ids = list(sampled)
        for row, id in enumerate(ids):
            self.text[id] += sampled[id]
            self.tokens[row, : len(self.text[id])] = self.text[id]
        if not tell:
            return None
        lengths = np.array([len(self.text[id]) for id in ids] + [0] * (4 - len(ids)), np.int32)
        work = self.book.step(Batch(ids, list(sampled.values()), lengths, self.tokens), self.requests.__getitem__)
        self.book.cache.append(work.handles, work.tokens, work.offsets)  # the drafter's part
        return work

    def limits(self, ids: str) -> list[int]:
        """What may be drafted for each of these that has a session."""
        return self.book.wanted(list(ids)).limits.tolist()


@pytest.fixture(name="book")
def fixture_book() -> RequestBook:
    return RequestBook(RolloutCache(), max_draft=8, max_length=32)


@pytest.fixture(name="engine")
def fixture_engine(book: RequestBook) -> Engine:
    return Engine(book)


def text_of(work: Work | None) -> dict[int, list[int]]:
    """New text of each row that took part."""
    assert work is not None
    begin, end = work.offsets[:-1].tolist(), work.offsets[1:].tolist()
    return {row: work.tokens[b:e].tolist() for row, b, e in zip(work.rows.tolist(), begin, end, strict=True)}


def test_text_enters_once_and_in_order(engine: Engine) -> None:
    """Each step hands over what it sampled, whatever the row."""
    engine.start("a", [1, 2])
    engine.start("b", [3])
    assert text_of(engine.step({"a": [5], "b": [6, 7]})) == {0: [5], 1: [6, 7]}
    assert text_of(engine.step({"b": [8], "a": [9]})) == {0: [8], 1: [9]}  # the rows were swapped


def test_prefill_chunks_and_unknown_requests_take_no_part(engine: Engine) -> None:
    """A row that sampled nothing is neither opened nor drafted for."""
    engine.start("a", [1, 2])
    assert text_of(engine.step({"a": []})) == {}
    assert "a" not in engine.book
    assert text_of(engine.step({"a": [5]})) == {0: [5]}


def test_skipped_steps_are_caught_up(engine: Engine) -> None:
    """Steps in which the host asked for no drafts are read from the token array later."""
    engine.start("a", [1, 2])
    engine.step({"a": [5]})
    engine.step({"a": [6]}, tell=False)
    engine.step({"a": [7, 8]}, tell=False)
    assert text_of(engine.step({"a": [9]})) == {0: [6, 7, 8, 9]}


def test_preempted_requests_go_on_where_they_were(engine: Engine) -> None:
    """A request that leaves the batch and comes back, recomputing, keeps its session and loses no text."""
    engine.start("a", [1, 2])
    engine.start("b", [3])
    first = engine.step({"a": [5], "b": [6]})
    engine.step({"b": [7]})
    assert text_of(engine.step({"b": [8], "a": []})) == {0: [8]}
    again = engine.step({"a": [9], "b": [4]})
    assert text_of(again) == {0: [9], 1: [4]}
    assert first is not None
    assert again is not None
    assert first.handles.tolist() == again.handles.tolist()


def test_reused_rows_leak_nothing(engine: Engine) -> None:
    """A row's old text never reaches the tree of the request that has the row now."""
    engine.start("a", [1, 2])
    engine.step({"a": [5, 5, 5, 5, 5]})
    engine.book.finish(["a"])
    engine.start("b", [3])
    engine.step({"b": [6]})
    engine.book.finish(["b"])
    cache = engine.book.cache
    handle = cache.open([3])
    assert cache.longest_continuation(handle, np.array([6, 5], np.int32)) == 1  # 6, then nothing


def test_max_tokens_and_stop_tokens_trim(engine: Engine) -> None:
    """Text past the request's end does not count; the drafts stop there too."""
    engine.start("a", [1, 2], max_tokens=3)
    work = engine.step({"a": [5, 6, 7, 8, 9]})
    assert text_of(work) == {0: [5, 6, 7]}
    assert engine.limits("a") == [0]
    engine.start("b", [1, 2], stop_ids=frozenset([8, 9]), min_tokens=3)
    engine.start("c", [1, 2], stop_ids=frozenset([4]))
    work = engine.step({"b": [8, 7, 8, 7, 8], "c": [8, 8]})  # the first 8 of b comes before min_tokens, c has no stop 8
    assert text_of(work) == {0: [8, 7, 8], 1: [8, 8]}
    assert text_of(engine.step({"b": [7], "c": [8]})) == {1: [8]}


def test_no_draft_reaches_past_the_end(engine: Engine) -> None:
    """A draft leaves room for the token that the model adds to it."""
    engine.start("a", list(range(1, 21)))
    engine.step({"a": [5, 6]})
    assert engine.limits("a") == [8]
    engine.step({"a": [7, 8, 9, 10]})
    assert engine.limits("a") == [32 - 26 - 1]


def test_no_draft_reaches_the_wall_but_from_behind_it(engine: Engine) -> None:
    """As many drafts as leave their last pick before the wall; from the wall on as many as ever."""
    engine.start("a", [1, 2, 3], undrafted_at=6)
    seen = []
    for token in range(7):
        engine.step({"a": [token]})
        seen += engine.limits("a")
    assert seen == [4, 3, 2, 1, 0, 8, 8]


def test_text_taken_back_starts_a_new_session(engine: Engine) -> None:
    """A failed transfer rolls a request back; what was withdrawn is forgotten."""
    engine.start("a", [1, 2])
    first = engine.step({"a": [5, 6, 7]})
    del engine.text["a"][3:]
    again = engine.step({"a": [8]})
    assert text_of(again) == {0: [5, 8]}
    assert first is not None
    assert again is not None
    assert first.handles.tolist() != again.handles.tolist()
    assert engine.book.cache.stats().sessions == 1


def test_streamed_prompt_continues_in_the_first_prompts_tree(engine: Engine) -> None:
    """A request resumed with a longer prompt keeps its tree; what came as prompt is context."""
    engine.start("a", [1, 2])
    engine.step({"a": [5, 6]})
    engine.book.restart(["a"])
    engine.start("a", [1, 2, 5, 6, 30])
    assert text_of(engine.step({"a": [7]})) == {0: [7]}
    engine.book.finish(["a"])
    assert engine.book.cache.stats().prompts == 1


def test_turns_of_a_session_share_a_tree(engine: Engine) -> None:
    """Later turns find the tree of the first; a prompt that does not extend it has its own."""
    options = RequestOptions(session="s")
    for id, prompt in (("a", [1, 2]), ("b", [1, 2, 5, 6, 30]), ("c", [1, 9])):
        engine.start(id, prompt, options=options)
        engine.step({id: [5, 6]})
        engine.book.finish([id])
    assert engine.book.cache.stats().prompts == 2
    engine.start("d", [1, 2])  # without a session: same first prompt, same tree
    engine.step({"d": [5]})
    assert engine.book.cache.stats().prompts == 2


def test_key_version_and_opt_outs(engine: Engine) -> None:
    """Options of a request: its tree, its version, whether it is drafted for and remembered."""
    cache = engine.book.cache
    engine.start("a", [1, 2], options=RequestOptions(key="k", version=3))
    engine.start("b", [1, 2], options=RequestOptions(draft=False))
    engine.start("c", [1, 2], options=RequestOptions(kind="validation"))
    engine.start("d", [1, 2], options=RequestOptions(draft=False, remember=False))
    work = engine.step({"a": [5], "b": [6], "c": [7], "d": [8]})
    assert work is not None
    assert work.rows.tolist() == [0, 1, 2]
    assert engine.limits("abcd") == [8, 0, 8]
    assert engine.limits("bdca") == [0, 8, 8]  # in any order, whatever the rows
    assert "k" in cache
    assert cache.version == 3
    engine.book.finish("abcd")
    assert cache.stats().rollouts == 2
    assert engine.book.counts.tokens_by_kind == {"rollout": 2, "validation": 1, "run-ahead": 0}
    assert engine.book.counts.row_steps_by_kind == {"rollout": 2, "validation": 1, "run-ahead": 0}


def test_prompts_without_tokens_are_left_alone(engine: Engine) -> None:
    """A prompt of embeddings has no text to key by."""
    engine.start("a", [1, 2])
    engine.requests["a"] = ServedRequest(prompt=None)
    assert text_of(engine.step({"a": [5]})) == {}
    engine.book.finish(["a"])
    assert len(engine.book) == 0


def test_cut_keeps_only_what_counts(engine: Engine) -> None:
    """The engine ran on behind a stop string: the rest is forgotten."""
    engine.start("a", [1, 2])
    engine.step({"a": [5, 6, 7, 8]})
    engine.book.end("a", [5, 6])
    cache = engine.book.cache
    handle = cache.open([1, 2])
    assert cache.longest_continuation(handle, np.array([5, 6, 7], np.int32)) == 2


def test_finish_and_drop_restart_running_requests(engine: Engine) -> None:
    """After either, a running request continues, its whole text in a new session."""
    engine.start("a", [1, 2])
    engine.step({"a": [5, 6]})
    engine.book.finish(engine.book.running)
    assert engine.book.cache.stats().rollouts == 1
    assert text_of(engine.step({"a": [7]})) == {0: [5, 6, 7]}
    engine.book.drop()
    assert engine.book.cache.stats().sessions == 0
    assert text_of(engine.step({"a": [8]})) == {0: [5, 6, 7, 8]}


def test_drop_forgets_what_was_running(engine: Engine) -> None:
    """After a failure nothing of a session is kept: it may lack tokens that were sampled."""
    cache = engine.book.cache
    engine.start("a", [1, 2])
    engine.start("b", [3])
    engine.step({"a": [5, 6, 7], "b": [8]})
    engine.book.drop()
    assert (cache.stats().sessions, cache.stats().rollouts) == (0, 0)
    handle = cache.open([1, 2], read_only=True)
    assert cache.longest_continuation(handle, np.array([5, 6, 7], np.int32)) == 0
    assert len(engine.book) == 0


def test_a_stop_token_is_looked_for_while_a_request_has_it(engine: Engine) -> None:
    """Counted by running requests: the last that ends takes it along, however it ends."""
    book = engine.book
    for id, stops in (("a", {8, 9}), ("b", {9}), ("c", {9}), ("d", {7})):
        engine.start(id, [1, 2], stop_ids=frozenset(stops))
    engine.step({"a": [5], "b": [5], "c": [5], "d": [5]})
    assert sorted(book._stops.array) == [7, 8, 9]
    book.finish(["a"])
    assert sorted(book._stops.array) == [7, 9]
    book.end("b", [5])
    assert sorted(book._stops.array) == [7, 9]
    book.restart(["d"])
    assert sorted(book._stops.array) == [9]
    book.drop()
    assert not book._stops.counts
    assert len(book._stops.array) == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_schedules_feed_every_token_once(seed: int) -> None:
    """Whatever the schedule, each request's session holds exactly its own text."""
    rng = random.Random(seed)
    engine = Engine(RequestBook(RolloutCache(), max_draft=8, max_length=WIDTH))
    handles: dict[str, list[int]] = {}
    running: list[str] = []
    for step in range(120):
        if len(running) < 4 and rng.random() < 0.5:
            id = f"r{step}"
            stops = frozenset({20 + step % 3})  # never sampled
            prompt = [rng.randrange(20) for _ in range(rng.randint(1, 6))]
            engine.start(id, prompt, max_tokens=rng.randint(1, 40), stop_ids=stops)
            running.append(id)
        batch = rng.sample(running, rng.randint(0, len(running)))
        sampled = {id: [rng.randrange(20) for _ in range(rng.choice((0, 1, 1, 3)))] for id in batch}
        work = engine.step(sampled, tell=rng.random() < 0.8)
        for row, text in text_of(work).items() if work is not None else ():
            handles.setdefault(batch[row], []).extend(text)
        for id in [id for id in running if len(engine.text[id]) > 40]:
            engine.book.finish([id])
            running.remove(id)
    for id, text in handles.items():
        request = engine.requests[id]
        assert request.prompt is not None
        assert request.max_tokens is not None
        assert text == engine.text[id][len(request.prompt) :][: request.max_tokens][: len(text)]
    engine.book.finish(engine.book.running)
    assert engine.book.cache.stats().sessions == 0
    assert not engine.book._stops.counts
    engine.book.cache.check()
