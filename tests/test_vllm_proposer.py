"""The proposer over whole lives of requests, on a fake scheduler and runner (`fake_vllm`): real vLLM is not needed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving import commands, watch
from rolltree.serving.core import GIVE_UP_AFTER
from rolltree.vllm import compat, control
from rolltree.vllm.proposer import Proposer
from tests.fake_vllm import LENGTH, VOCAB, WIDTH, FakeEngine, fake_config, fake_proposer, next_token


@pytest.fixture(name="proposer")
def fixture_proposer(monkeypatch: pytest.MonkeyPatch) -> Proposer:
    return fake_proposer(monkeypatch)


@pytest.fixture(name="engine")
def fixture_engine(proposer: Proposer) -> FakeEngine:
    return FakeEngine(proposer)


def plain(prompt: list[int], count: int) -> list[int]:
    """What the model says without drafts."""
    text = list(prompt)
    for _ in range(count):
        text.append(next_token(text))
    return text[len(prompt) :]


def kept_exactly(engine: FakeEngine) -> int:
    """Assert that every tree holds its prompt's own rollouts or none, whole and nothing else; return how many."""
    cache, tokens, count = engine.proposer.core.drafter.cache, 0, 0
    cache.check()
    for id, prompt in engine.prompts.items():
        if kept := cache.rollouts(prompt):
            assert kept == 1, "the prompts of these tests differ"
            handle = cache.open(prompt, read_only=True)
            text = np.array(engine.texts[id], np.int32)
            assert cache.longest_continuation(handle, text) == len(text)
            cache.close(handle)
            tokens, count = tokens + len(prompt) + len(text), count + 1
    known = [prompt for prompt in engine.prompts.values() if not cache.rollouts(prompt)]
    extra = cache.stats().tokens - tokens
    assert extra in range(sum(map(len, known)) + 1)  # trees of prompts whose rollout was lost
    return count


def test_drafts_change_nothing_and_are_accepted(engine: FakeEngine, proposer: Proposer) -> None:
    """Text is that of the model, the second time in fewer steps; the figures say so."""
    prompts = [[1, 2, n] for n in range(6)]
    for epoch in range(2):
        for n, prompt in enumerate(prompts):
            engine.add(f"{epoch}-{n}", prompt)
        steps = len(engine.positions)
        engine.run()
        assert len(engine.positions) - steps <= (24, 12)[epoch]
    assert all(engine.texts[id] == plain(engine.prompts[id], 20) for id in engine.texts)
    stats = proposer.core.stats()
    assert stats["tokens"] == 12 * 20
    assert stats["accepted"] > 60
    assert stats["errors"] == 0


def test_ends_are_trimmed_where_vllm_ends(engine: FakeEngine) -> None:
    """`max_tokens`, stop tokens, stop strings, each with and without `min_tokens`; text before the end is kept."""
    prompts = {name: [7, 9, n] for n, name in enumerate(("long", "id", "id-min", "text", "text-min", "wall"))}
    for prompt in prompts.values():  # drafts of later requests run past the ends
        engine.add(f"warm-{prompt[2]}", prompt, max_tokens=40)
    engine.run()
    engine.proposer.core.forget()
    for name, prompt in prompts.items():
        says = plain(prompt, 40)
        early = {"stop_token_ids": [says[4]]} if "id" in name else {"stop": [chr(65 + says[4])]}
        ends = early if name[:2] in ("id", "te") else {}
        engine.add(name, prompt, max_tokens=200 if name == "wall" else 40, min_tokens=12 * name.endswith("min"), **ends)
    engine.run()
    assert len(engine.texts["id"]) <= 5 < 12 <= len(engine.texts["id-min"])
    assert len(engine.texts["text"]) <= 5 < 12 < len(engine.texts["text-min"])
    assert len(engine.texts["wall"]) == LENGTH - 3
    for id in [id for id in engine.prompts if id.startswith("warm")]:
        del engine.prompts[id]
    assert kept_exactly(engine) == len(prompts)
    assert engine.proposer.core.book.stop_tokens == frozenset()


def test_the_last_step_is_kept_where_vllm_asked_for_no_drafts(engine: FakeEngine) -> None:
    """A request that ends in a step without a proposal loses nothing of its text."""
    engine.add("a", [1, 2, 3], max_tokens=6)
    while engine.busy:
        engine.step(ask=len(engine.texts["a"]) < 3)
    engine.step()
    assert kept_exactly(engine) == 1


def test_chunked_prompts_preemption_and_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to requests, their text is right and the trees hold what was generated."""
    rng = random.Random(3)
    proposer = fake_proposer(monkeypatch, tokens=24, rows=5)
    engine = FakeEngine(proposer, tokens=24, rows=5)
    for n in range(40):
        engine.add(f"r{n}", [rng.randrange(VOCAB) for _ in range(rng.randint(3, 30))], max_tokens=rng.randint(1, 30))
        for _ in range(rng.randint(0, 4)):
            running = list(engine.input_batch.req_ids)
            if running and rng.random() < 0.1:
                engine.abort(rng.choice(running))
            elif engine._running and rng.random() < 0.2:
                engine.preempt(rng.choice(engine._running))
            engine.step(ask=rng.random() < 0.8)
    engine.run()
    for id, text in engine.texts.items():
        assert text == plain(engine.prompts[id], len(text))
    engine.prompts = {id: prompt for id, prompt in engine.prompts.items() if engine.texts[id]}
    assert kept_exactly(engine) > 30
    assert proposer.core.stats()["cache_sessions"] == proposer.core.stats()["errors"] == 0


CALLS = [
    "drafter.draft",
    "drafter.advance",
    "cache.open",
    "cache.extend",
    "cache.close",
    "cache.settle",
    "book.step",
    "core.cheap_stats",
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [0, 2, 5])
@pytest.mark.parametrize("call", CALLS)
def test_a_failure_anywhere_keeps_nothing_that_was_not_generated(
    engine: FakeEngine, proposer: Proposer, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, after: bool
) -> None:
    """The n-th call of one function fails, before or after its work: text is right, and so is all that is kept."""
    where, _, name = call.partition(".")
    core = proposer.core
    owner: Any = {"core": core, "drafter": core.drafter, "cache": core.drafter.cache, "book": core.book}[where]
    inner, calls = getattr(owner, name), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth + 1 and not after:
            raise RuntimeError("planted")
        answer = inner(*args, **kwargs)
        if calls[0] == nth + 1:
            raise RuntimeError("planted")
        return answer

    monkeypatch.setattr(type(owner), name, lambda self, *args, **kwargs: failing(*args, **kwargs))
    for n in range(8):
        ends = {"stop": [chr(65 + plain([4, 5, n], 9)[8])]} if n % 2 else {}
        engine.add(f"r{n}", [4, 5, n], max_tokens=12 + n, **ends)
    engine.run()
    monkeypatch.undo()
    for id, text in engine.texts.items():
        assert text == plain(engine.prompts[id], len(text))
    planted = calls[0] > nth
    assert proposer.core.counts.errors == planted
    assert proposer.core.stats()["cache_sessions"] == (
        planted and after and call == "cache.open"
    )  # nobody has its handle
    assert kept_exactly(engine) >= 4


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("planted")


def test_the_brake_pulls_again_after_resume(
    engine: FakeEngine, proposer: Proposer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixteen failures in a row pause drafting, each time; text goes on."""
    monkeypatch.setattr(proposer.core.drafter, "draft", broken)
    engine.add("a", [1, 2, 3], max_tokens=80)
    for pulls in (1, 2):
        for step in range(GIVE_UP_AFTER):
            assert not proposer.core.paused, step
            engine.step()
        assert proposer.core.paused
        assert sum("drafts no more" in line for line in caplog.messages) == pulls
        commands.run(proposer.core, "resume")
        assert not proposer.core.paused
    monkeypatch.undo()
    engine.run()
    assert engine.texts["a"] == plain([1, 2, 3], 80)
    assert kept_exactly(engine) == 1
    assert caplog.text.count("this step has no drafts") == 1


def test_clear_while_requests_run(engine: FakeEngine, proposer: Proposer) -> None:
    """No figure that counts ever falls, text stays right, and what runs is remembered whole."""
    sums = ("steps", "row_steps", "tokens", "drafted", "accepted", "tokens_rollout", "cache_hits", "cache_opened")
    before = dict.fromkeys(sums, 0.0)
    for epoch in range(3):
        for n in range(4):
            engine.add(f"{epoch}-{n}", [1, 2, n], max_tokens=20)
        while engine.busy:
            engine.step()
            stats = commands.run(proposer.core, "stats")
            assert all(stats[name] >= before[name] for name in sums), (before, stats)
            before = stats
            if len(engine.positions) % 7 == 6:
                commands.run(proposer.core, "clear")
                assert proposer.core.stats()["cache_prompts"] == 0
    engine.step()
    assert proposer.core.counts.errors == 0
    assert all(text == plain(engine.prompts[id], 20) for id, text in engine.texts.items())
    assert before["accepted"] > 0
    assert before["tokens_per_step"] == before["tokens"] / before["row_steps"]


def test_replicas_are_added_up_and_ratios_taken_last(engine: FakeEngine, proposer: Proposer) -> None:
    """Two replicas with the same figures have twice the sums and the same ratios."""
    for n in range(2):
        engine.add(str(n), [1, 2, 3])
        engine.run()
    one = proposer.core.stats()
    two = control._sum([one, one])
    ratios = {"tokens_per_step", "drafted_per_step", "acceptance_rate"}
    assert one["drafted_per_step"] > 0
    assert two == {name: value if name in ratios else 2 * value for name, value in one.items()}


def test_paused_it_learns_and_drafts_nothing(engine: FakeEngine, proposer: Proposer) -> None:
    """Pause: no drafts, text is remembered. Resume: drafts from it."""
    commands.run(proposer.core, "pause")
    for n in range(2):
        engine.add(f"a{n}", [1, 2, 3])
        while engine.busy:
            assert not any(engine.step())
    commands.run(proposer.core, "resume")
    engine.add("b", [1, 2, 3])
    drafts: list[list[int]] = []
    while engine.busy:
        drafts += engine.step()
    assert any(drafts)


def test_it_is_said_once_that_drafting_stopped(
    engine: FakeEngine, proposer: Proposer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After it had worked: one warning in the log, with the reason."""
    monkeypatch.setattr(watch, "WINDOW", 8)
    for n in range(3):
        engine.add(f"a{n}", [1, 2, 3], max_tokens=60)
        engine.run()
    assert not caplog.messages
    commands.run(proposer.core, "pause")
    for n in range(3):
        engine.add(f"b{n}", [1, 2, 3], max_tokens=60)
        engine.run()
    (line,) = caplog.messages
    assert "worked and has stopped" in line
    assert "control.resume()" in line


def test_no_row_waits_because_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token budget that drafts could fill, every running request is in every step."""
    for limit, waits in ((True, False), (False, True)):
        proposer = fake_proposer(monkeypatch, tokens=14, rows=8)
        if not limit:
            monkeypatch.setattr(proposer.core, "_room", lambda *_: 10**6)
        engine = FakeEngine(proposer, tokens=14, rows=8)
        for epoch in range(3):
            for n in range(8):
                engine.add(f"{epoch}-{n}", [1, 2, n], max_tokens=20)
            engine.run()
        assert (engine.waited > 0) == waits
        assert proposer.core.stats()["accepted"] > 20
        assert all(text == plain(engine.prompts[id], 20) for id, text in engine.texts.items())


def test_prompts_that_are_being_read_go_before_drafts(proposer: Proposer, engine: FakeEngine) -> None:
    """Tokens of a long prompt that are still to be read leave no room for drafts of others."""
    engine.budget = 20
    proposer.core.engine = replace(proposer.core.engine, step_tokens=20)
    engine.add("warm", [1, 2, 3], max_tokens=30)
    engine.run()
    engine.add("again", [1, 2, 3], max_tokens=30)
    for _ in range(3):
        engine.step()
    engine.add("long", [*range(40), 1, 2], max_tokens=2)
    drafted = [sum(map(len, engine.step())) for _ in range(4)]
    assert drafted[0] == 0  # 42 tokens, of which this step read what was left
    assert drafted[2] > 0


def test_the_logits_of_a_step_fit_into_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """`logits_bytes` for 12 positions: no step of 8 requests verifies more; without it, steps do."""
    for bytes, more in ((12 * VOCAB * 24, False), (0, True)):
        proposer = fake_proposer(monkeypatch, logits_bytes=bytes)
        monkeypatch.setattr(compat, "free_bytes", lambda share: 2**40)
        engine = FakeEngine(proposer)
        for epoch in range(2):
            for n in range(8):
                engine.add(f"{epoch}-{n}", [1, 2, n], max_tokens=20)
            engine.run()
        assert (max(engine.positions) > 12) == more
        assert proposer.core.stats()["accepted"] > 0


def test_the_limits_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """At the start, and when memory is known."""
    caplog.set_level(logging.INFO, "vllm.rolltree")
    engine = FakeEngine(fake_proposer(monkeypatch, logits_bytes=2**20))
    engine.add("a", [1, 2, 3], max_tokens=2)
    engine.run()
    assert "bounded by 512 tokens a step and 1 MiB for logits" in caplog.text
    assert f"logits of {2**20 // (24 * VOCAB)} positions for 8 requests, 512 tokens a step" in caplog.text


def test_several_processes_derive_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory differs between processes: with more than one, it is not measured."""
    asked: list[float | None] = []

    def free(share: float | None) -> int:
        asked.append(share)
        return 10**9

    for world in (1, 2):
        proposer = fake_proposer(monkeypatch)
        monkeypatch.setattr(compat, "free_bytes", free)
        proposer._config.parallel_config.world_size = world
        proposer.core._room(1, 0)
    assert asked == [None, 0.9]


def test_wild_drafts_are_cut(engine: FakeEngine, proposer: Proposer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids outside the vocabulary and drafts that are too long do not reach the engine."""
    draft = proposer.core.drafter.draft

    def wild(handles: Any, limits: Any) -> Any:
        batch = draft(handles, limits)
        batch.tokens[:, 1:] = 2**30
        batch.lengths[:] = WIDTH + 5
        return batch

    monkeypatch.setattr(proposer.core.drafter, "draft", wild)
    engine.add("a", [1, 2, 3], max_tokens=10)
    while engine.busy:
        assert all(0 <= token < VOCAB for row in engine.step() for token in row)


def test_a_request_with_bad_options_is_left_alone(engine: FakeEngine, proposer: Proposer) -> None:
    """Where the front end did not refuse it: counted, not drafted for, not remembered; the others are."""
    engine.add("a", [1, 2, 3], extra_args={"rolltree_kind": "test"})
    engine.add("b", [1, 2, 4], extra_args={"rolltree_kind": "rollout"})
    engine.run()
    stats = proposer.core.stats()
    assert (stats["invalid_options"], stats["cache_rollouts"], stats["errors"]) == (1, 1, 0)


def image(place: int, content: str | None) -> Any:
    return SimpleNamespace(identifier=content, mm_hash=None, mm_position=SimpleNamespace(offset=place, length=1))


def test_prompts_with_images_are_told_apart(engine: FakeEngine, proposer: Proposer) -> None:
    """The same tokens with other images are another prompt; an image without a hash is in no tree."""
    for n, content in enumerate(("cat", "dog", "cat", None)):
        engine.add(f"r{n}", [1, 2, 3])
        engine._states[f"r{n}"].mm_features = [image(1, content)]
    engine.add("text", [1, 2, 3])
    engine.run()
    stats = proposer.core.stats()
    assert (stats["cache_prompts"], stats["cache_rollouts"], stats["errors"]) == (3, 4, 0)


@pytest.mark.parametrize("width", [0, 129, True, 2.0])
def test_a_width_that_vllm_does_not_verify_stops_the_start(monkeypatch: pytest.MonkeyPatch, width: Any) -> None:
    """Longer drafts than its rejection sampler takes would end the engine in the middle of a run."""
    with pytest.raises(InvalidInputError, match=r"speculative_config\.num_speculative_tokens = .*: must be 1 to 128"):
        fake_proposer(monkeypatch, width=width)


def test_a_host_that_never_shows_its_schedule_is_said(proposer: Proposer, caplog: pytest.LogCaptureFixture) -> None:
    """Another runner than the one that is hooked: no drafts, an error that says why, and no exception."""
    assert proposer.propose([[1]], np.array([3]), np.zeros((1, 8), np.int32)) == [[]]
    assert proposer.core.counts.errors == 1
    assert "another model runner" in caplog.text


def test_other_arguments_are_taken(proposer: Proposer) -> None:
    """A later vLLM may hand more to a proposer."""
    assert proposer.propose([[1]], np.array([3]), np.zeros((1, 8), np.int32), 4, extra=5) == [[]]


def test_the_fake_is_what_the_tests_need() -> None:
    """Without drafts the fake engine says what its model says."""
    silent: Callable[..., Any] = lambda sampled, *_, **__: [[] for _ in sampled]  # noqa: E731
    nobody: Any = SimpleNamespace(propose=silent, rolltree_begin_step=lambda *_: None)
    engine = FakeEngine(nobody, tokens=9, rows=3)
    for n in range(5):
        engine.add(str(n), [1, 2, 3, 4, 5, n], max_tokens=9)
    engine.run()
    assert all(text == plain(engine.prompts[id], 9) for id, text in engine.texts.items())
    assert fake_config().speculative_config.num_speculative_tokens == WIDTH
