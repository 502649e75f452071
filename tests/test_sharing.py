"""Rollouts between engines, in one process: what is told, asked, taken in, refused, forgotten. With Ray: tests/verl."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rolltree import RolloutCache
from rolltree.errors import InvalidInputError
from rolltree.serving.agreement import Agreement
from rolltree.sharing import exchange as exchange_module
from rolltree.sharing import inbox as inbox_module
from rolltree.sharing import outbox as outbox_module
from rolltree.sharing.counts import SharingCounts
from rolltree.sharing.exchange import Exchange
from rolltree.sharing.inbox import Inbox
from rolltree.sharing.message import Fingerprint, Piece, Reply, Request, Text, Want, read, write
from rolltree.tokens import prompt_key
from rolltree.types import Int32Array
from tests.sharing_tools import MODEL, PROMPTS, Here, port_of, sharing_host, stats, submit, trip
from tests.toy_host import VOCAB, ToyHost

PROMPT = np.array([5, 6, 7], np.int32)
NAME = prompt_key(PROMPT)
TEXT = np.random.default_rng(0).integers(0, VOCAB, 300).astype(np.int32)


def piece(stream: str, start: int, stop: int, *, is_done: bool = False, text: Int32Array = TEXT) -> Piece:
    head = {"prompt": PROMPT, "version": 0} if start == 0 else {}
    made = Text(stream=stream, name=NAME, start=start, tokens=text[start:stop], is_done=is_done, **head)  # type: ignore[arg-type]
    return write(made)


def request(sender: str, *pieces: Piece, seen: int | None = None, most: int = 1 << 20, **running: int) -> Request:
    """What an engine brings; with `seen`, it asks for the prompt and has `running`."""
    wants = {} if seen is None else {NAME: Want(seen=seen, running={f"a/{n}": k for n, k in running.items()})}
    return Request(fingerprint=MODEL, sender=sender, pieces=pieces, dropped=(), wants=wants, most=most)


def spans(reply: Reply) -> list[tuple[str, int, int, bool]]:
    return [(p.stream, p.start, p.stop, p.is_done) for p in reply.pieces]


def test_an_engine_gets_what_it_lacks_and_nothing_of_its_own() -> None:
    meeting = Exchange()
    meeting.trade(request("a", piece("a/1", 0, 40), piece("a/2", 0, 50, is_done=True)))
    asked = meeting.trade(request("b", seen=0))
    assert spans(asked) == [("a/2", 0, 50, True), ("a/1", 0, 40, False)]
    assert spans(meeting.trade(request("a", seen=0))) == []
    meeting.trade(request("a", piece("a/1", 40, 60)))
    again = meeting.trade(request("b", seen=asked.seen[NAME], **{"1": 40}))
    assert spans(again) == [("a/1", 40, 60, False)]
    meeting.trade(request("a", piece("a/1", 60, 60, is_done=True)))
    last = meeting.trade(request("b", seen=asked.seen[NAME], **{"1": 60}))
    assert (spans(last), last.seen[NAME]) == ([("a/1", 60, 60, True)], 2)
    assert spans(meeting.trade(request("b", seen=2))) == []


def test_pieces_that_come_twice_late_or_without_their_begin_are_left_out() -> None:
    meeting = Exchange()
    first, second = piece("a/1", 0, 40), piece("a/1", 40, 60)
    meeting.trade(request("a", second))
    assert meeting.size == 0
    meeting.trade(request("a", first, first, second, second, piece("a/1", 80, 90)))
    assert spans(meeting.trade(request("b", seen=0))) == [("a/1", 0, 40, False), ("a/1", 40, 60, False)]
    done = piece("a/2", 0, 9, is_done=True)
    meeting.trade(request("a", done, done))
    reply = meeting.trade(request("b", seen=0))
    assert len(reply.pieces) == 3
    meeting.trade(request("a", done))
    assert spans(meeting.trade(request("b", seen=reply.seen[NAME], **{"1": 60}))) == []


def test_what_is_gone_is_said() -> None:
    """A rollout that was dropped, one of an engine that is no more, and all after a restart."""
    now = [0.0]
    meeting = Exchange(clock=lambda: now[0])
    meeting.trade(request("a", piece("a/1", 0, 40), piece("a/2", 0, 40)))
    meeting.trade(replace(request("a"), dropped=[(NAME, "a/1"), ("other", "a/2")]))
    meeting.trade(replace(request("b"), dropped=[(NAME, "a/2")]))
    assert meeting.trade(request("b", seen=0, **{"1": 40, "2": 40})).gone == ["a/1"]
    now[0] = exchange_module.FORGET_SECONDS + 1
    assert meeting.trade(request("b", seen=0, **{"2": 40})).gone == ["a/2"]
    assert Exchange().trade(request("b", seen=0, **{"2": 40})).gone == ["a/2"]
    assert meeting.size == 0


def test_an_answer_has_no_more_bytes_than_asked_and_the_rest_comes_later() -> None:
    meeting = Exchange()
    for n in range(5):
        meeting.trade(request("a", piece(f"a/{n}", 0, 300, is_done=True)))
    seen, found = 0, []
    for _ in range(10):
        reply = meeting.trade(request("b", seen=seen, most=600))
        seen = reply.seen[NAME]
        found += [p.stream for p in reply.pieces]
        assert sum(p.size for p in reply.pieces) < 600 + piece("a/1", 0, 300).size
    assert found == [f"a/{n}" for n in range(5)]


def test_an_exchange_keeps_its_window_and_its_bytes() -> None:
    meeting = Exchange(window=3, capacity=4000)
    for n in range(10):
        meeting.trade(request("a", piece(f"a/{n}", 0, 100, is_done=True)))
    assert [p.stream for p in meeting.trade(request("b", seen=0)).pieces] == ["a/7", "a/8", "a/9"]
    for n in range(100):
        meeting.trade(request("a", replace(piece(f"a/x{n}", 0, 100), name=f"other {n}")))
        assert meeting.size <= 4000
    assert not meeting.trade(request("b", seen=0)).pieces


def test_another_model_or_vocabulary_is_refused_with_a_sentence() -> None:
    meeting = Exchange()
    meeting.trade(request("a", piece("a/1", 0, 40)))
    for other in (Fingerprint(model="toy", vocab=VOCAB + 1), Fingerprint(model="b", vocab=VOCAB)):
        reply = meeting.trade(replace(request("b", piece("b/1", 0, 40), seen=0), fingerprint=other))
        assert "toy with a vocabulary of 40" in reply.refused
        assert str(other) in reply.refused
        assert not reply.pieces
    assert spans(meeting.trade(request("c", seen=0))) == [("a/1", 0, 40, False)]


OUTSIDE = write(Text(stream="", name="", start=0, tokens=TEXT[:20] + VOCAB)).text


@pytest.mark.parametrize(
    "change",
    [
        {"text": b"no tokens"}, {"text": 7}, {"text": OUTSIDE},
        {"stop": 21}, {"start": -1}, {"context": ((5, 99),)}, {"context": 3},
        {"head": replace(piece("a/1", 0, 20).head, key=3)}, {"head": replace(piece("a/1", 0, 20).head, prompt=b"")},  # type: ignore[type-var]
        {"head": replace(piece("a/1", 0, 20).head, version="x")},  # type: ignore[type-var]
    ],
    ids=str,
)  # fmt: skip
def test_a_poisoned_piece_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        read(replace(piece("a/1", 0, 20), **change), VOCAB)


def test_a_piece_comes_back_as_it_was_written() -> None:
    text = Text(stream="s", name="n", start=3, tokens=TEXT, context=((2, 5), (9, 9)), is_done=True)
    back = read(write(text), VOCAB)
    assert back.tokens.tolist() == TEXT.tolist()
    assert replace(back, tokens=TEXT) == text


class Receiver:
    """A cache with one live request of the prompt, and an inbox."""

    def __init__(self) -> None:
        self.cache, self.counts = RolloutCache(), SharingCounts()
        self.own = self.cache.open(PROMPT)
        self.inbox = Inbox(self.cache, self.counts, logging.getLogger("rolltree"))
        self.inbox.wants()

    def take(self, *pieces: Piece, gone: Sequence[str] = (), seen: int = 0) -> None:
        self.inbox.take([read(p, VOCAB) for p in pieces], {NAME: seen}, gone)
        self.inbox.enter(1 << 30)

    def held(self) -> tuple[int, int]:
        """Tokens and finished rollouts of the trees."""
        self.cache.check()
        held = self.cache.stats()
        return held.tokens, held.rollouts


def test_text_enters_once_whether_it_comes_in_parts_or_whole() -> None:
    """Pieces that overlap, come twice or with a gap leave the very tree that one whole rollout leaves."""
    whole, parts = Receiver(), Receiver()
    whole.take(piece("a/1", 0, 300, is_done=True))
    parts.take(piece("a/1", 0, 100), piece("a/1", 0, 100), piece("a/1", 60, 150), piece("a/1", 200, 250))
    assert parts.inbox.wants()[NAME].running == {"a/1": 150}
    assert parts.counts.shared_received == 150
    parts.take(piece("a/1", 150, 280), piece("a/1", 200, 300, is_done=True))
    assert whole.held() == parts.held() == (len(PROMPT) + 300, 1)
    text = [int(token) for token in TEXT[100:300]]
    for each in (whole, parts):
        handle = each.cache.open(PROMPT)
        each.cache.extend(handle, TEXT[:100])
        assert each.cache.longest_continuation(handle, text) == 200
    assert (parts.counts.shared_received, parts.counts.shared_rollouts) == (300, 1)


def test_a_rollout_of_which_a_part_is_missing_is_not_kept() -> None:
    here = Receiver()
    before = here.held()
    here.take(piece("a/1", 0, 100), piece("a/1", 200, 300, is_done=True))
    assert here.held() == before


def test_running_text_drafts_and_leaves_without_a_trace() -> None:
    """Where the other drops its rollout, or this engine has no request of the prompt any more."""
    for ending in ("gone", "no request"):
        here = Receiver()
        before = here.held()
        here.take(piece("a/1", 0, 300))
        reader = here.cache.open(PROMPT, read_only=True)
        here.cache.extend(reader, TEXT[:50])
        assert here.cache.longest_continuation(reader, TEXT[50:300]) == 250
        here.cache.close(reader)
        if ending == "gone":
            here.take(gone=["a/1"])
        else:
            here.cache.close(here.own, keep=False)
            assert here.inbox.wants() == {}
            here.inbox.enter(1)
        assert here.held() == before
        assert not here.inbox._followed


def test_text_enters_in_portions() -> None:
    here = Receiver()
    here.inbox.take([read(piece("a/1", 0, 300, is_done=True), VOCAB)], {}, [])
    steps = 0
    while len(here.inbox):
        before = here.counts.shared_received
        here.inbox.enter(150)
        steps += 1
        assert here.counts.shared_received - before <= 150 + inbox_module.PORTION
    assert steps >= 3
    assert here.held() == (len(PROMPT) + 300, 1)


def test_a_tree_that_was_made_anew_is_filled_anew() -> None:
    here = Receiver()
    here.take(piece("a/1", 0, 300, is_done=True), seen=4)
    assert here.inbox.wants()[NAME].seen == 4
    here.cache.close(here.own, keep=False)
    here.inbox.wants()
    here.cache.clear()
    here.own = here.cache.open(PROMPT)
    assert here.inbox.wants()[NAME].seen == 0


def test_what_was_refused_is_taken_no_more() -> None:
    here = Receiver()
    here.take(piece("a/1", 0, 100))
    here.inbox.ignore("a/1", NAME)
    here.take(piece("a/1", 100, 200), piece("a/2", 0, 300, is_done=True))
    assert here.inbox.wants()[NAME].running == {"a/1": inbox_module.NEVER}
    here.take(piece("a/1", 200, 300, is_done=True))
    assert here.held() == (len(PROMPT) + 300, 1)


def pair(**settings: Any) -> tuple[ToyHost, ToyHost, Here]:
    channel = Here(Exchange())
    return sharing_host(channel, "a", **settings), sharing_host(channel, "b", **settings), channel


def continued(host: ToyHost, prompt: list[int], text: list[int]) -> int:
    """How many first tokens of a text the prompt's tree continues with."""
    assert host.core is not None
    cache = host.core.drafter.cache
    handle = cache.open(prompt, read_only=True)
    found = cache.longest_continuation(handle, text)
    cache.close(handle)
    return found


def test_what_one_engine_generates_drafts_on_the_other_and_text_stays() -> None:
    """Finished rollouts, and running ones: the other is in the midst of the same prompts."""
    alone, (one, other, _) = ToyHost(), pair()
    submit(one, "x", PROMPTS[:4], max_tokens=100)
    while max(len(state.output) for state in one.states.values()) < 80:
        one.step()
    trip(one)
    for host in (alone, other):
        submit(host, "x", PROMPTS[:4], max_tokens=100)
        host.step()
    trip(other)
    assert stats(other)["shared_rollouts"] == 0
    followed = {known.name: known.have for known in port_of(other)._inbox._followed.values()}  # type: ignore[union-attr]
    assert stats(other)["shared_received"] == sum(followed.values()) >= 80
    for n, prompt in enumerate(PROMPTS[:4]):
        assert continued(other, prompt, one.states[f"x-{n}"].output) >= followed[prompt_key(prompt)] > 0
    text = alone.run()
    assert one.run() == other.run() == text
    assert other.steps < alone.steps
    submit(other, "y", PROMPTS[:4], max_tokens=100)
    other.step()
    trip(one, other)
    assert stats(other)["shared_rollouts"] == 4, "those that one finished after other's prompts were done"
    texts = other.run()
    assert all(texts[f"y-{n}"] == text[f"x-{n}"] for n in range(4))
    trip(one, other)
    assert [stats(host)["shared_sent"] for host in (one, other)] == [400, 800], "each its own, once"
    held = stats(other)
    assert (held["errors"], held["shared_refused"], held["shared_failures"]) == (0, 0, 0)
    assert held["cache_rollouts"] == 4 + 8


def test_an_exchange_that_is_lost_costs_no_step_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """It fails, and comes back empty: what was told and what was not is told again."""
    caplog.set_level(logging.INFO, "rolltree")
    one, other, channel = pair()
    port_of(one).courier._rest = port_of(other).courier._rest = lambda: 0.0  # type: ignore[method-assign]
    submit(one, "x", PROMPTS[:2], max_tokens=100)
    while max(len(state.output) for state in one.states.values()) < 50:
        one.step()
    trip(one)
    assert stats(one)["shared_sent"] > 50
    channel.fails = True
    one.run()
    trip(one)
    trip(one)
    held = stats(one)
    assert held["shared_failures"] >= 2
    assert held["errors"] == 0
    assert [r.levelname for r in caplog.records if "exchange of rollouts" in r.message] == ["WARNING"]
    channel.fails, channel.exchange = False, Exchange()
    trip(one)
    trip(one)
    assert "is there again" in caplog.records[-1].message
    submit(other, "x", PROMPTS[:2], max_tokens=100)
    other.step()
    trip(other)
    assert stats(other)["shared_rollouts"] == 2


def test_another_model_shares_nothing_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    one, _, channel = pair()
    stranger = sharing_host(channel, "c", Fingerprint(model="else", vocab=VOCAB))
    submit(one, "x", PROMPTS[:2])
    one.step()
    trip(one)
    submit(stranger, "x", PROMPTS[:2])
    stranger.step()
    trip(stranger)
    stranger.run()
    held = stats(stranger)
    assert held["shared_refused"] >= 1
    assert (held["shared_received"], held["errors"]) == (0, 0)
    assert sum("is not for this engine: it is shared by engines of toy" in r.message for r in caplog.records) == 1


def test_a_poisoned_message_costs_its_rollout_alone(caplog: pytest.LogCaptureFixture) -> None:
    one, other, channel = pair()
    submit(one, "x", PROMPTS[:1], max_tokens=100)
    one.run()
    trip(one)
    poison = replace(piece("evil/1", 0, 20), name=prompt_key(PROMPTS[0]), text=OUTSIDE)
    channel.exchange.trade(request("evil", poison, replace(poison, stream="evil/2", is_done=True)))
    submit(other, "x", PROMPTS[:1], max_tokens=100)
    other.step()
    trip(other)
    trip(other)
    held = stats(other)
    assert (held["shared_refused"], held["shared_rollouts"], held["errors"]) == (2, 1, 0)
    said = sum("refuses text of another engine" in record.message for record in caplog.records)
    assert said == 1


def test_finished_rollouts_wait_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "WAITING", 100)
    one, _, channel = pair()
    channel.fails = True
    submit(one, "x", max_tokens=30)
    one.run()
    held = stats(one)
    assert held["shared_dropped"] == len(PROMPTS) - 3
    assert port_of(one)._outbox._waiting <= 100


def test_bytes_a_second_are_bounded() -> None:
    """What a trip took beyond its allowance is taken from the next ones."""
    one, _, _ = pair(rate=1000)
    now, courier = [0.0], port_of(one).courier
    courier._clock = lambda: now[0]
    courier._next = courier._earned = 0.0
    spent = 0
    for n in range(20):
        submit(one, f"x{n}", PROMPTS[:4], max_tokens=100)
        one.run()
        now[0] += 1.0
        if courier.allowance():
            trip(one)
        spent = int(stats(one)["shared_bytes"])
        assert spent <= 1000 * (2 + now[0]) + 4 * 100 * 4
    assert spent > 5000


def test_trees_that_are_cleared_share_on() -> None:
    one, other, _ = pair()
    submit(one, "x", PROMPTS[:2], max_tokens=100)
    one.step()
    trip(one)
    assert one.core is not None
    one.core.forget()
    one.run()
    trip(one)
    submit(other, "x", PROMPTS[:2], max_tokens=100)
    other.step()
    trip(other)
    assert stats(other)["shared_rollouts"] == 2
    assert other.run().keys() == one.states.keys()


def test_ranks_that_schedule_alone_do_not_share(caplog: pytest.LogCaptureFixture) -> None:
    """What comes would come to each of them at another step."""
    one, _, _ = pair()
    assert one.core is not None
    one.core.agreement = Agreement(lambda mine: np.stack([mine, mine]), leads=True)
    submit(one, "x")
    one.run()
    assert (stats(one)["shared_sent"], stats(one)["errors"]) == (0, 0)
    assert sum("shares nothing: the ranks" in record.message for record in caplog.records) == 1
