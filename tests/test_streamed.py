"""A serving core whose steps a stream does while the host runs ahead: same text as alone, however far it is behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolltree.budget import CostModel, best_length
from rolltree.errors import InvalidInputError, RolltreeError
from rolltree.serving.options import EngineOptions
from rolltree.serving.streamed import TURNS
from tests.streamed_host import StreamedHost
from tests.toy_host import ToyHost

LAGS = (0, 1, 2, 3)


def submit(host: Any, *, rounds: int = 4, **more: Any) -> None:
    """Requests of four prompts, some with stop tokens, some of one token."""
    for i in range(4 * rounds):
        prompt = [1, 2, i % 4]
        host.add(f"r{i}", prompt, max_tokens=(40, 30, 1, 17)[i % 3], stop=(5, 9) if i % 2 else (), **more)


def right() -> dict[str, list[int]]:
    """What the requests generate without drafts."""
    host = ToyHost(speculate=False)
    submit(host)
    return host.run()


def tokens_in_cache(host: StreamedHost) -> int:
    with host.core.guarded():
        host.core.rest()
        host.core.commit()
    host.core.drafter.cache.check()
    return int(host.core.stats()["cache_tokens"])


def tokens_of(texts: dict[str, list[int]]) -> int:
    return 4 * 3 + sum(map(len, texts.values()))


@pytest.mark.parametrize("lag", LAGS)
def test_text_is_the_same_and_in_the_trees_once(lag: int) -> None:
    """Slots go from one request to the next while steps of the former are in flight."""
    host, texts = StreamedHost(lag=lag), right()
    submit(host)
    assert host.run() == texts
    assert tokens_in_cache(host) == tokens_of(texts)
    stats = host.core.stats()
    assert (stats["errors"], stats["late_steps"], stats["cache_sessions"]) == (0, 0, 0)
    assert stats["tokens"] == sum(map(len, texts.values()))
    assert stats["accepted"] > 50
    assert stats["accepted"] <= stats["drafted"]


def test_a_device_that_is_too_far_behind_costs_drafts() -> None:
    """More steps in flight than there are turns: some steps have no drafts, and who ends in one may lack its text."""
    host, texts = StreamedHost(lag=TURNS + 2), right()
    submit(host)
    assert host.run() == texts
    host.core.rest()
    stats = host.core.stats()
    assert stats["errors"] == 0
    assert stats["late_steps"] > 0
    assert stats["tokens"] <= sum(map(len, texts.values()))


@pytest.mark.parametrize("lag", LAGS)
def test_a_request_whose_end_its_text_tells(lag: int) -> None:
    """The engine cuts it there later than the stream took it in."""
    host = StreamedHost(lag=lag)
    submit(host, end_of=lambda text: text[:10])
    texts = host.run()
    assert tokens_in_cache(host) == 4 * 3 + sum(min(len(text), 10) for text in texts.values())


@pytest.mark.parametrize("lag", LAGS)
def test_an_id_is_used_again_at_once(lag: int) -> None:
    """While the session of the one before is still in flight."""
    host, texts = StreamedHost(lag=lag), right()
    want = 0
    for _ in range(6):
        for i in range(4):
            host.add(f"r{i}", [1, 2, i], max_tokens=30)
        want += sum(len(text) for text in host.run().values())
    assert tokens_in_cache(host) == 4 * 3 + want
    assert host.core.counts.errors == 0
    assert texts


@pytest.mark.parametrize("lag", LAGS)
def test_a_step_that_fails_before_anything_changed(lag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no drafts; its text comes with the next step of the row."""
    host, texts = StreamedHost(lag=lag), right()
    fill, calls = host.core.book.fill, iter(range(10**6))

    def broken(turn: Any, rows: Any) -> None:
        fill(turn, rows)
        if next(calls) % 8 == 3:
            turn.prompts[0] = -1

    monkeypatch.setattr(host.core.book, "fill", broken)
    submit(host)
    assert host.run() == texts
    host.core.rest()
    stats = host.core.stats()
    assert stats["errors"] > 2
    assert not host.core.paused
    assert stats["accepted"] > 20


@pytest.mark.parametrize("lag", LAGS)
def test_a_step_that_fails_in_the_midst_of_it(lag: int) -> None:
    """All running requests start anew, their whole text comes in once more; nothing is kept of the torn sessions."""
    host, texts = StreamedHost(lag=lag), right()
    submit(host)
    for _ in range(3):
        host.step()
    before = set(host.core.drafter.cache._live)
    host.core._step = Torn(host.core._step, at=host.core._step.handed)  # type: ignore[assignment, union-attr]
    for _ in range(lag + 2):
        host.step()
    assert len(before) >= 4
    assert before.isdisjoint(host.core.drafter.cache._live)
    assert host.run() == texts
    assert tokens_in_cache(host) <= tokens_of(texts)
    assert host.core.counts.errors == 1
    assert host.core.counts.accepted > 20
    assert host.core.stats()["cache_sessions"] == 0


def test_what_is_told_late_of_a_session_that_is_gone_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is torn; those behind it, which were being done meanwhile, tell of sessions that were dropped."""
    host, kept = StreamedHost(lag=0), list[list[int]]()
    submit(host, end_of=lambda text: text[:10])
    host.core.drafter.cache.listen(lambda rollout: kept.append(list(map(int, rollout.token_ids))))
    host.step()
    monkeypatch.setattr(host.core, "poll", lambda: None)
    for _ in range(3):
        host.step()
    monkeypatch.undo()
    torn = host.core._step = Torn(host.core._step, at=2)  # type: ignore[assignment]
    torn.hides = True
    host.step()
    torn.hides = False
    texts = host.run()
    tokens_in_cache(host)
    assert host.core.counts.errors == 1
    assert len(kept) > 8
    assert all(text in [whole[:10] for whole in texts.values()] for text in kept)


class Torn:
    """A step one of whose turns has failed in the midst of it."""

    def __init__(self, step: Any, at: int) -> None:
        self._step, self._at = step, at
        self.hides = False
        """What came behind that turn is not known to be done yet."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    @property
    def done(self) -> int:
        return self._at if self.hides else int(self._step.done)

    def result(self, number: int) -> Any:
        return SimpleNamespace(outcome=2, error="planted") if number == self._at else self._step.result(number)


def test_sixteen_failures_in_a_row_pause_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wherever drafting waits; `resume` goes on."""
    host = StreamedHost(lag=1)
    fill = host.core.book.fill

    def broken(turn: Any, rows: Any) -> None:
        fill(turn, rows)
        turn.prompts[:] = -1

    monkeypatch.setattr(host.core.book, "fill", broken)
    host.add("a", [1, 2, 3], max_tokens=60)
    host.run()
    host.core.rest()
    assert host.core.paused
    failed = host.core.counts.errors
    assert failed >= 60
    monkeypatch.undo()
    host.core.resume()
    submit(host)
    host.run()
    host.core.rest()
    assert host.core.counts.errors == failed
    assert host.core.counts.accepted > 20


@pytest.mark.parametrize("lag", LAGS)
def test_paused_text_is_remembered_and_nothing_is_drafted(lag: int) -> None:
    host, texts = StreamedHost(lag=lag), right()
    host.core.pause()
    submit(host)
    assert host.run() == texts
    assert tokens_in_cache(host) == tokens_of(texts)
    assert host.core.counts.drafted == 0


@pytest.mark.parametrize("lag", LAGS)
def test_the_trees_are_cleared_between_two_steps(lag: int) -> None:
    """What is in flight is waited for; running requests start anew in the new trees."""
    host, texts = StreamedHost(lag=lag), right()
    submit(host)
    for _ in range(5):
        host.step()
    host.core.forget()
    assert host.run() == texts
    assert host.core.counts.errors == 0
    assert 0 < tokens_in_cache(host) <= tokens_of(texts)


def test_a_stream_that_has_ended_is_told_of() -> None:
    """A command must not wait for ever."""
    host = StreamedHost(lag=3)
    submit(host)
    host.step()
    host.core.use(host.buffers, lambda: None)
    with pytest.raises(RolltreeError, match="stream did not"):
        host.core.rest()


def test_a_launch_that_failed_is_taken_back() -> None:
    """The turn is filled in anew."""
    host, texts = StreamedHost(lag=2), right()
    submit(host)
    hand_over, calls, planted = host.core.hand_over, iter(range(10**6)), list[int]()

    def refused(*args: Any) -> Any:
        handed = hand_over(*args)
        if handed is not None and next(calls) % 12 == 7:
            host.core.take_back()
            planted.append(1)
            raise RuntimeError("planted")
        return handed

    host.core.hand_over = refused  # type: ignore[method-assign]
    assert host.run() == texts
    assert host.core.counts.errors == len(planted) > 1
    assert host.core.counts.accepted > 0


@given(
    gain=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    rows=st.integers(1, 64),
    token=st.floats(1e-4, 1),
    most=st.integers(0, 8),
)
def test_the_width_with_the_most_tokens_a_second(gain: list[float], rows: int, token: float, most: int) -> None:
    """By trying all of them; no wider than there are columns."""
    columns = np.sort(np.array(gain))[::-1] * rows
    cost, most = CostModel(base=1.0, token=token), min(most, len(gain))
    rates = [(rows + columns[:width].sum()) / cost.seconds(rows, rows * width, width) for width in range(most + 1)]
    best, rate = best_length(columns, dict.fromkeys(range(most + 1), True), cost, rows=rows)
    assert rates[best] == pytest.approx(rate) == pytest.approx(max(rates))


@pytest.mark.parametrize("learned", [False, True])
def test_the_next_step_verifies_a_length_that_the_device_has_graphs_for(
    learned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the cost, which may also choose none, and without one the longest that there is."""
    CostModel(base=1.0, token=1e-6).save(tmp_path / "cost.json")
    host, widths = StreamedHost(lag=1, cost=str(tmp_path / "cost.json") if learned else "off"), list[int]()
    host.core.use(host.buffers, host.drain, lambda rows: {3: True})
    original = host.core.hand_over

    def hand_over(*args: Any) -> Any:
        handed = original(*args)
        widths.extend([] if handed is None else [handed.width])
        return handed

    monkeypatch.setattr(host.core, "hand_over", hand_over)
    submit(host)
    assert host.run() == right()
    assert {3} <= set(widths) <= {0, 3}


def test_where_drafting_waits_is_checked() -> None:
    with pytest.raises(InvalidInputError, match=r"wait = 'device': must be one of auto, host, stream"):
        EngineOptions.read({"wait": "device"}, {}, where="a.rolltree")
