"""A host from `tests.toy_host`, end to end: the same text with and without drafts, whatever happens meanwhile."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving import commands
from rolltree.serving.core import GIVE_UP_AFTER, ServingCore
from rolltree.serving.lengths import Drafted
from rolltree.types import Int32Array
from tests.toy_host import VOCAB, WIDTH, ToyHost

PROMPTS = [[1, 2, n] for n in range(8)]


def core_of(host: ToyHost) -> ServingCore:
    assert host.core is not None
    return host.core


def plain(prompt: list[int], **settings: Any) -> list[int]:
    """What the engine generates without drafts."""
    host = ToyHost(speculate=False)
    host.add("a", prompt, **settings)
    return host.run()["a"]


def epoch(host: ToyHost, name: str, **settings: Any) -> dict[str, list[int]]:
    """Generate for all prompts; return the texts by request."""
    for n, prompt in enumerate(PROMPTS):
        host.add(f"{name}-{n}", prompt, **settings)
    return {id: text for id, text in host.run().items() if id.startswith(f"{name}-")}


def kept(host: ToyHost, prompt: list[int], text: list[int]) -> bool:
    """Whether the tree of the prompt holds the text to its end."""
    cache = core_of(host).drafter.cache
    cache.check()
    handle = cache.open(prompt, read_only=True)
    found = cache.longest_continuation(handle, np.array(text, np.int32)) == len(text)
    cache.close(handle)
    return found


def test_text_is_that_without_drafts_and_comes_in_fewer_steps() -> None:
    """Two epochs: the second is drafted from the first."""
    host = ToyHost()
    first = epoch(host, "first")
    steps, accepted = host.steps, core_of(host).stats()["accepted"]
    second = epoch(host, "second")
    assert list(first.values()) == list(second.values()) == [plain(prompt) for prompt in PROMPTS]
    assert host.steps - steps < 0.75 * steps < 0.75 * len(PROMPTS) / 4 * 30
    stats = core_of(host).stats()
    assert stats["accepted"] > accepted + 100
    assert stats["tokens"] == 2 * 30 * len(PROMPTS)
    assert (stats["errors"], stats["cache_sessions"], stats["cache_rollouts"]) == (0, 0, 16)
    assert all(kept(host, prompt, text) for prompt, text in zip(PROMPTS, first.values(), strict=True))


def test_stop_tokens_end_a_text_where_the_engine_does() -> None:
    """Drafts run past the stop; what stands behind it is in no tree."""
    host = ToyHost()
    epoch(host, "long")
    core_of(host).forget()
    stop = plain(PROMPTS[0])[9]
    right = [plain(prompt, stop=[stop]) for prompt in PROMPTS]
    assert [list(epoch(host, name, stop=[stop]).values()) for name in "ab"] == [right, right]
    assert len(right[0]) <= 10
    assert core_of(host).stats()["cache_tokens"] == sum(3 + 2 * len(text) for text in right)
    assert core_of(host).book.stop_tokens == frozenset()


def test_rows_move_and_requests_are_preempted() -> None:
    """Requests come, lose their places and go on in others; rows are in another order in every step anyway."""
    rng, host = random.Random(1), ToyHost(slots=5)
    for n in range(40):
        host.add(f"r{n}", [1, n % 7, n % 3], max_tokens=rng.randint(1, 40))
        for _ in range(rng.randint(0, 4)):
            if host._slots and rng.random() < 0.4:
                host.preempt(rng.choice(list(host._slots)))
            host.step()
    texts = host.run()
    for id, state in host.states.items():
        assert texts[id] == plain(state.prompt, max_tokens=state.max_tokens)
        assert kept(host, state.prompt, texts[id])
    stats = core_of(host).stats()
    assert stats["accepted"] > 100
    assert (stats["errors"], stats["cache_sessions"], stats["cache_rollouts"]) == (0, 0, 40)


def test_turns_of_a_conversation_share_a_tree_and_validations_leave_none() -> None:
    """By the options that a request carries."""
    host = ToyHost()
    host.add("turn-1", PROMPTS[0], session="s")
    turn = host.run()["turn-1"]
    host.add("turn-2", [*PROMPTS[0], *turn, 9, 9], session="s")
    host.run()
    host.add("test", PROMPTS[1], kind="validation")
    host.add("unwanted", PROMPTS[2], draft=False, remember=False)
    host.add("wrong", PROMPTS[3], kind="test")
    assert host.run()["wrong"] == plain(PROMPTS[3])
    stats = core_of(host).stats()
    assert (stats["cache_rollouts"], stats["tokens_validation"], stats["invalid_options"]) == (2, 30, 1)
    assert stats["tokens"] == stats["tokens_rollout"] + stats["tokens_validation"] == 90


@pytest.mark.parametrize("name", ["draft", "advance"])
def test_a_failure_costs_a_step_its_drafts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected into the drafter: the text stays, the failure is counted, and drafting goes on."""
    host = ToyHost()
    epoch(host, "first")
    inner, calls = getattr(core_of(host).drafter, name), iter(range(10**6))

    def failing(*arguments: Any) -> Any:
        if next(calls) % 5 == 3:
            raise RuntimeError("planted")
        return inner(*arguments)

    monkeypatch.setattr(core_of(host).drafter, name, failing)
    before = core_of(host).stats()
    texts = epoch(host, "second")
    assert list(texts.values()) == [plain(prompt) for prompt in PROMPTS]
    stats = core_of(host).stats()
    assert stats["errors"] >= 1
    assert stats["accepted"] > before["accepted"]
    assert stats["cache_sessions"] == 0


def test_what_fails_always_pauses_until_it_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen steps in a row; after `resume` it drafts again."""
    host, core = ToyHost(), None
    epoch(host, "first")
    core = core_of(host)
    with monkeypatch.context() as patch:
        patch.setattr(core.drafter, "advance", lambda *_: 1 / 0)
        epoch(host, "second")
    assert (core.paused, core.counts.errors >= GIVE_UP_AFTER) == (True, True)
    commands.run(core, "resume")
    accepted = core.stats()["accepted"]
    epoch(host, "third")
    assert core.stats()["accepted"] > accepted


def test_commands() -> None:
    """Pause, resume, a new version, and empty trees: sums never fall."""
    host = ToyHost()
    core = core_of(host)
    epoch(host, "first")
    commands.run(core, "pause")
    drafted = host.drafted
    epoch(host, "second")
    assert host.drafted == drafted
    assert core.stats()["cache_rollouts"] == 16
    commands.run(core, "resume")
    commands.run(core, "set_version", 3)
    before = commands.run(core, "stats")
    host.add("running", PROMPTS[0], max_tokens=60)
    for _ in range(3):
        host.step()
    commands.run(core, "clear")
    assert core.stats()["cache_prompts"] == 0
    assert host.run()["running"] == plain(PROMPTS[0], max_tokens=60)
    stats = commands.run(core, "stats")
    assert all(stats[name] >= before[name] for name in ("tokens", "accepted", "drafted_history", "cache_opened"))
    assert kept(host, PROMPTS[0], host.states["running"].output)


def test_drafts_stay_within_the_tokens_of_a_step() -> None:
    """Four requests in a step of ten tokens: six drafts at most; and no id is outside the vocabulary."""
    host = ToyHost(step_tokens=10)
    core = core_of(host)
    epoch(host, "first")
    for n, prompt in enumerate(PROMPTS[:4]):
        host.add(f"again-{n}", prompt)
    host.step()
    drafts = core.draft([f"again-{n}" for n in range(4)], running=4)
    assert 0 < sum(map(len, drafts)) <= 6
    assert all(0 <= token < VOCAB for row in drafts for token in row)
    assert core.draft(["unknown"], running=4) == [[]]


def test_rollouts_of_other_engines_draft_here() -> None:
    other, here = ToyHost(), ToyHost()
    texts = epoch(other, "elsewhere")
    rollouts = [{"prompt_token_ids": p, "token_ids": t} for p, t in zip(PROMPTS, texts.values(), strict=True)]
    assert commands.run(core_of(here), "add", rollouts) == len(PROMPTS)
    assert list(epoch(here, "here").values()) == list(texts.values())
    assert here.steps < 0.75 * other.steps
    for bad in ({"token_ids": [1]}, {"prompt_token_ids": [1], "token_ids": [VOCAB]}, {"prompt_token_ids": "1"}, 7):
        with pytest.raises(InvalidInputError, match=r"rollouts\[1\]"):
            commands.run(core_of(here), "add", [rollouts[0], bad])
    assert core_of(here).stats()["cache_rollouts"] == 2 * len(PROMPTS)


class Halves:
    """A rule that verifies half of each draft, and notes what it was told."""

    def __init__(self) -> None:
        self.seen: list[Drafted] = []

    def cut(self, drafted: Drafted) -> Int32Array:
        self.seen.append(replace(drafted, lengths=drafted.lengths.copy()))  # a view, as long as the call
        return drafted.lengths // 2


def test_a_rule_of_the_host_cuts_drafts() -> None:
    """It gets every draft, whole; what it leaves is what is verified and counted."""
    host, rule = ToyHost(step_tokens=40, logits_bytes=1 << 20), Halves()
    core_of(host).lengths = rule
    epoch(host, "first", draft=False)
    drafted = core_of(host).stats()["drafted"]
    texts = epoch(host, "second")
    assert list(texts.values()) == [plain(prompt) for prompt in PROMPTS]
    assert {(given.room, given.cost) for given in rule.seen if given.rows == 4} == {(36, None)}  # 40 tokens a step
    assert all(given.lengths.max(initial=0) <= WIDTH for given in rule.seen)
    stats = core_of(host).stats()
    assert drafted == 0 < stats["drafted"] == host.drafted
    assert stats["drafted"] <= sum(int(given.lengths.sum()) for given in rule.seen) // 2
    assert stats["errors"] == 0


def test_what_the_engine_did_not_verify_is_not_counted() -> None:
    """By request; those without a session are ignored."""
    host = ToyHost(slots=1, logits_bytes=1 << 20)
    epoch(host, "first")
    host.add("again", PROMPTS[0])
    host.step()
    core, before = core_of(host), core_of(host).stats()["drafted"]
    (draft,) = core.draft(["again"], running=1)
    assert len(draft) > 1
    core.verified({"again": 1, "unknown": 0})
    host._take_in(["again"], [host._generate("again", draft[:1])])
    assert core.stats()["drafted"] == before + 1
