"""A failure anywhere in a step leaves no hole: trees and store hold what was generated and nothing else, no session and
no request is left over, and the engine can be used on.

Each call of the drafter, the store and the model fails in turn, before or after it did its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rolltree.cache import RolloutCache
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request, Result
from rolltree.engine.ahead import RunAheadEngine
from rolltree.errors import InvalidInputError
from rolltree.sampling import SamplingParams
from rolltree.store import RolloutStore
from tests.engine_tools import Oracle, prompts, tiny_model

torch.set_num_threads(1)
VOCAB = 23
CONFIG = EngineConfig(slots=2, max_length=48, max_draft=4)
BATCH = [Request(prompts(2)[i % 2], SamplingParams(max_tokens=8, seed=i)) for i in range(4)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def healthy(model: Any) -> list[list[int]]:
    return [r.token_ids for r in Engine(model, CONFIG).generate(BATCH)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RolloutStore]:
    with RolloutStore(tmp_path / "rollouts.db") as opened:
        yield opened


class Failing:
    """A callable that raises `error` at its n-th call, before or after the real one; counts calls."""

    def __init__(self, call: Callable[..., Any], at: int, error: type[BaseException], *, after: bool) -> None:
        self.call, self.at, self.error, self.after, self.calls = call, at, error, after, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls != self.at:
            return self.call(*args, **kwargs)
        if self.after:
            self.call(*args, **kwargs)
        raise self.error("planted")


def pairs(text: list[int]) -> set[tuple[int, int]]:
    return set(pairwise(text))


def pairs_held(cache: RolloutCache, prompt: list[int], *, shared: bool) -> set[tuple[int, int]]:
    """Every two tokens that stand side by side anywhere in the prompt's tree, or in the one of all prompts."""
    session = cache.open(prompt, read_only=True)
    reach = cache.longest_continuation
    found = {p for p in product(range(VOCAB), repeat=2) if reach(session, np.array(p, np.int32), shared=shared) == 2}
    cache.close(session, keep=False)
    return found


def check_memory(cache: RolloutCache, store: RolloutStore, made: list[list[int]]) -> None:
    """Trees and store hold rollouts of `made` only, those of `BATCH`; nothing runs."""
    assert cache.stats().sessions == 0
    cache.check()
    whole = [(r.prompt_token_ids, text) for r, text in zip(BATCH, made, strict=True)]
    for prompt in {tuple(r.prompt_token_ids) for r in BATCH}:
        own = [list(prompt) + text for p, text in whole if tuple(p) == prompt]
        assert pairs_held(cache, list(prompt), shared=False) <= set().union(*map(pairs, own))
    assert pairs_held(cache, BATCH[0].prompt_token_ids, shared=True) <= set().union(*(pairs(p + t) for p, t in whole))
    store.flush()
    stored = [(r.prompt_token_ids.tolist(), r.token_ids.tolist()) for r in store]
    assert all(stored.count(rollout) <= whole.count(rollout) for rollout in stored)


DRAFTER = [(TreeDrafter, name) for name in ("open", "draft", "advance", "close")]
MEMORY = [(RolloutCache, "open"), (RolloutCache, "annotate"), (RolloutStore, "put"), (RolloutStore, "recall")]
PLACES = [(place, after) for place in DRAFTER + MEMORY for after in (False, True)]
PLACES.remove(((TreeDrafter, "open"), True))  # a handle that nobody was told cannot be closed by the engine
PLACES.remove(((RolloutCache, "open"), True))


def run(
    model: Any, store: RolloutStore, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, failing: Failing
) -> tuple[Engine, RolloutCache, list[Result]]:
    cache = RolloutCache(store=store)
    engine = Engine(model, CONFIG, TreeDrafter(cache), store=store)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda self, *a, **k: failing(self, *a, **k))
        return engine, cache, engine.generate(BATCH)


@pytest.mark.parametrize(
    ("place", "after"), PLACES, ids=lambda v: f"{v[0].__name__}.{v[1]}" if v.__class__ is tuple else v
)
def test_a_failing_call_changes_no_rollout_and_leaves_no_hole(
    place: tuple[type, str], after: bool, model: Any, healthy: list[list[int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    owner, name = place
    call = 0
    while True:
        call += 1
        failing = Failing(getattr(owner, name), call, MemoryError, after=after)
        with RolloutStore(tmp_path / f"{call}.db") as store:
            engine, cache, results = run(model, store, monkeypatch, owner, name, failing)
            if failing.calls < call:
                break
            assert [r.token_ids for r in results] == healthy
            journal = cache._journal
            assert journal is not None
            assert engine.stats.drafter_errors + engine.stats.store_errors + journal.spoiled + journal.unread > 0
            check_memory(cache, store, healthy)
    assert call > 2


def test_without_failures_everything_is_held(model: Any, healthy: list[list[int]], store: RolloutStore) -> None:
    """The checks above are not vacuous."""
    cache = RolloutCache(store=store)
    Engine(model, CONFIG, TreeDrafter(cache), store=store).generate(BATCH)
    check_memory(cache, store, healthy)
    assert len(list(store)) == len(BATCH)
    assert sum(cache.rollouts(r.prompt_token_ids) for r in BATCH[:2]) == len(BATCH)
    with pytest.raises(AssertionError):
        check_memory(cache, store, [text[::-1] for text in healthy])


def test_a_lost_session_costs_the_tree_not_the_store(
    model: Any, healthy: list[list[int]], store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was generated without a session is still recorded, with its log-probabilities, by the engine itself."""
    failing = Failing(TreeDrafter.advance, 3, MemoryError, after=False)
    _, cache, _ = run(model, store, monkeypatch, TreeDrafter, "advance", failing)
    store.flush()
    assert sorted(r.token_ids.tolist() for r in store) == sorted(healthy)
    assert all(r.logprobs is not None for r in store)
    assert sum(cache.rollouts(r.prompt_token_ids) for r in BATCH[:2]) == 2  # of the four, two ran when it failed


MODEL = [("_runner", "logits"), ("_runner", "prefill"), ("_verifier", "verify")]


@pytest.mark.parametrize(
    ("place", "error"),
    [*((p, e) for p in MODEL for e in (RuntimeError, KeyboardInterrupt)), *((p, KeyboardInterrupt) for p in DRAFTER)],
    ids=str,
)
def test_leaving_by_an_exception_leaves_nothing_behind(
    place: tuple[Any, str], error: type[BaseException], model: Any, healthy: list[list[int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    owner, name = place
    for call in (1,) if name == "prefill" else (1, 2, 3, 4):  # one forward prefills both prompts
        with RolloutStore(tmp_path / f"{call}.db") as store:
            cache = RolloutCache(store=store)
            engine = Engine(model, CONFIG, TreeDrafter(cache), store=store)
            target: Any = engine._source.drafter if owner is TreeDrafter else getattr(engine, owner)
            failing = Failing(getattr(target, name), call, error, after=name == "advance")
            with monkeypatch.context() as patch:
                patch.setattr(target, name, failing)
                with pytest.raises(error, match="planted"):
                    engine.generate(BATCH)
            assert engine.unfinished == 0
            assert model.config._attn_implementation == "sdpa"
            check_memory(cache, store, healthy)
            assert [r.token_ids for r in engine.generate(BATCH)] == healthy
            assert cache.stats().sessions == 0


def test_after_a_failed_step_every_request_comes_back_aborted(
    model: Any, healthy: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queued by `submit`, running or waiting, for the caller or ahead of need: each is delivered once."""
    engine = Engine(model, CONFIG)
    ids = [engine.submit(request) for request in BATCH]
    ahead: list[Result] = []
    engine.submit(BATCH[0], on_finish=ahead.append)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "logits", Failing(engine._runner.logits, 1, RuntimeError, after=False))
        with pytest.raises(RuntimeError, match="planted"):
            engine.step()
    assert engine.load() == (0, 0)
    assert engine.unfinished == len(ids)
    results = {r.id: r for r in engine.step()}
    assert sorted(results) == ids
    assert {r.finish_reason for r in [*results.values(), *ahead]} == {"abort"}
    assert len(ahead) == 1
    assert [len(results[id].token_ids) for id in ids] == [1, 1, 0, 0]
    assert all(
        results[id].token_ids == text[: len(results[id].token_ids)] for id, text in zip(ids, healthy, strict=True)
    )
    assert engine.unfinished == 0


def test_a_prompt_that_never_reached_the_cache_is_not_taken_over(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sibling of a request whose prefill failed finds no prompt where that one would have been."""
    batch = [Request([7] * 9, SamplingParams(max_tokens=6, seed=i)) for i in range(3)]
    expected = [r.token_ids for r in Engine(model, CONFIG).generate(batch)]
    engine = Engine(model, CONFIG)
    monkeypatch.setattr(engine._runner, "prefill", Failing(engine._runner.prefill, 1, RuntimeError, after=False))
    for request in batch:
        engine.submit(request)
    with pytest.raises(RuntimeError, match="planted"):
        engine.step()
    assert [r.token_ids for r in engine.generate(batch)] == expected


def test_an_interrupt_between_steps_ends_the_callers_requests_alone(model: Any, healthy: list[list[int]]) -> None:
    engine = Engine(model, CONFIG, TreeDrafter())
    other = engine.submit(BATCH[3])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(BATCH[:3], progress=interrupt)
    results = []
    while engine.unfinished:
        results += engine.step()
    assert [(r.id, r.token_ids) for r in results] == [(other, healthy[3])]


def test_run_ahead_can_be_interrupted(model: Any, healthy: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = TreeDrafter()
    engine = Engine(model, CONFIG, drafter)
    ahead = RunAheadEngine(engine, drafter)
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "logits", Failing(engine._runner.logits, 4, KeyboardInterrupt, after=True))
        with pytest.raises(KeyboardInterrupt):
            ahead.generate(BATCH, upcoming=[BATCH])
    assert drafter.cache.stats().sessions == 0
    assert [r.token_ids for r in ahead.generate(BATCH, upcoming=[BATCH])] == healthy


NO_REQUESTS: list[tuple[object, str]] = [
    (Request([[1], [1, 2]]), r"requests\[1\]\.prompt_token_ids"),  # type: ignore[list-item]
    (Request(None), r"requests\[1\]\.prompt_token_ids = None"),  # type: ignore[arg-type]
    (Request(5), r"requests\[1\]\.prompt_token_ids = 5"),  # type: ignore[arg-type]
    (Request("text"), r"requests\[1\]\.prompt_token_ids = 'text'"),  # type: ignore[arg-type]
    (Request([0.5]), r"requests\[1\]\.prompt_token_ids"),  # type: ignore[list-item]
    (Request([True]), r"requests\[1\]\.prompt_token_ids"),
    (Request([2**70]), r"requests\[1\]\.prompt_token_ids"),
    (Request(np.zeros((2, 2), np.int32)), r"requests\[1\]\.prompt_token_ids"),
    (Request([1], {"seed": 3}), r"requests\[1\]\.sampling"),  # type: ignore[arg-type]
    (Request([1], key=7), r"requests\[1\]\.key = 7"),  # type: ignore[arg-type]
    ([1, 2, 3], r"requests\[1\] = \[1, 2, 3\]"),
]


@pytest.mark.parametrize(("bad", "words"), NO_REQUESTS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_no_request_is_named_before_anything_is_queued(bad: Any, words: str, model: Any) -> None:
    engine = Engine(model, CONFIG, TreeDrafter())
    with pytest.raises(InvalidInputError, match=words):
        engine.generate([BATCH[0], bad, BATCH[1]])
    with pytest.raises(InvalidInputError, match=words.replace(r"requests\[1\]", "request")):
        engine.submit(bad)
    assert engine.unfinished == 0
    assert engine.next_id == 0
    assert engine.load() == (0, 0)


@pytest.mark.parametrize("linked", [True, False], ids=["the cache's store", "a store of the engine's own"])
def test_a_request_that_is_not_remembered_leaves_no_trace(
    linked: bool, model: Any, healthy: list[list[int]], store: RolloutStore
) -> None:
    """Drafted for from what is there, and gone when it ends: neither tree, nor the shared one, nor the store has it."""
    cache = RolloutCache(store=store if linked else None)
    engine = Engine(model, CONFIG, TreeDrafter(cache), store=store)
    engine.generate(BATCH[:2])
    store.flush()
    before = (cache.stats().rollouts, cache.stats().tokens, len(store))
    accepted = engine.stats.accepted
    results = engine.generate([Request(r.prompt_token_ids, r.sampling, remember=False) for r in BATCH])
    assert [r.token_ids for r in results] == healthy
    assert engine.stats.accepted > accepted
    store.flush()
    assert (cache.stats().rollouts, cache.stats().tokens, len(store)) == before
    seen = set().union(*(pairs([*r.prompt_token_ids, *t]) for r, t in zip(BATCH[:2], healthy, strict=False)))
    assert pairs_held(cache, BATCH[0].prompt_token_ids, shared=True) <= seen


def test_a_store_without_drafts_records_all_the_same(model: Any, healthy: list[list[int]], store: RolloutStore) -> None:
    """No session to annotate (`max_draft=0`): the engine adds the rollout itself."""
    config = EngineConfig(slots=2, max_length=48, max_draft=0)
    Engine(model, config, TreeDrafter(RolloutCache(store=store)), store=store).generate(BATCH)
    store.flush()
    assert sorted(r.token_ids.tolist() for r in store) == sorted(healthy)


def test_other_drafters_hear_the_same(model: Any, healthy: list[list[int]]) -> None:
    """By the protocol alone: a drafter whose `advance` failed sees its sessions closed unkept, once."""
    known = {(tuple(r.prompt_token_ids), r.sampling.seed): t for r, t in zip(BATCH, healthy, strict=True)}
    drafter = Oracle(known, vocab=VOCAB)
    drafter.advance = Failing(drafter.advance, 2, ZeroDivisionError, after=False)  # type: ignore[method-assign]
    results = Engine(model, CONFIG, drafter).generate(BATCH)
    assert [r.token_ids for r in results] == healthy
    assert not drafter.live
    assert sorted(keep for _, keep in drafter.closed) == [False, False, True, True]
    assert sorted(text for text, keep in drafter.closed if keep) == sorted(healthy[2:])
