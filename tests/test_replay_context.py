"""Tool output in a rollout: taken in whole, never drafted, never counted as generated."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from rolltree.replay.drafters import Limits, parse_drafters
from rolltree.replay.profiles import Measured
from rolltree.replay.records import Rollout, Selection
from rolltree.replay.run import ReplayConfig, replay
from rolltree.replay.simulator import Simulator
from rolltree.replay.tally import Tally
from tests.replay_tools import UNIT, Scripted, random_rollouts, rollout

DRAFTERS = ["none", "ngram", "history", "srt", "rolltree", "rolltree:shape=tree", "ceiling"]


def with_tools(seed: int, step: int = 0) -> list[Rollout]:
    """Random rollouts, most with a few parts that were not generated."""
    random_, made = random.Random(seed), []
    for one in random_rollouts(seed, step=step):
        edges = sorted(random_.sample(range(len(one.tokens) + 1), k=min(4, len(one.tokens))))
        spans = tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if a < b)
        made.append(replace(one, context=spans).cut(len(one.tokens)))
    return [one for one in made if one.generated]


def simulate(rollouts: list[Rollout], drafter: Scripted, max_draft: int = 4) -> tuple[Simulator, Tally]:
    tally = Tally(len(rollouts), max_draft)
    simulator = Simulator(rollouts, drafter, UNIT, tally, slots=0, max_draft=max_draft)
    simulator.run()
    return simulator, tally


def test_a_request_hears_of_all_its_text_and_generates_its_own() -> None:
    one = replace(rollout("a", [1, 2, 7, 8, 9, 3, 4]), context=((2, 5),))
    drafter = Scripted()
    _, tally = simulate([one], drafter)
    assert drafter.texts[0] == [1, 2, 7, 8, 9, 3, 4]
    assert tally.row_steps.tolist() == [4]
    assert tally.engine_steps == 4


def test_a_draft_ends_with_the_turn() -> None:
    one = replace(rollout("a", [7, 7, 7, 7, 7, 7]), context=((2, 4),))
    _, tally = simulate([one], Scripted(lambda so_far, limit: [7] * limit))
    # a turn of two, tool output of two, a turn of two: what is drafted past a turn's end is never accepted
    assert (tally.engine_steps, tally.accepted.tolist()) == (2, [4])


@pytest.mark.parametrize("spans", [((0, 2),), ((0, 1), (3, 5)), ((1, 5),)])
def test_context_anywhere(spans: tuple[tuple[int, int], ...]) -> None:
    one = replace(rollout("a", range(6)), context=spans)
    drafter = Scripted()
    _, tally = simulate([one, rollout("b", range(9))], drafter)
    assert drafter.texts[0] == list(range(6))
    assert tally.row_steps.tolist() == [one.generated, 9]


def test_tool_output_is_paid_for_like_a_prompt() -> None:
    loads = []

    class Listening(Measured):
        def seconds(self, load):  # type: ignore[no-untyped-def]
            loads.append((load.prefill, load.context))
            return 1.0

    one = replace(rollout("a", [1, 7, 8, 9, 2]), context=((1, 4),))
    tally = Tally(1, 4)
    Simulator([one], Scripted(), Listening("l", UNIT.cost), tally, slots=0, max_draft=4).run()
    assert loads == [(0, 1), (3, 5)]  # the second step prefills three tokens, on a prompt of one and four of text


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_replays_it(name: str) -> None:
    recording = Selection().select(with_tools(9), [*with_tools(0, step=1), *with_tools(1, step=2)])
    config = ReplayConfig(drafters=parse_drafters([name]), profile=UNIT, limits=Limits(max_draft=8), batches=[3])
    document = replay(recording, config, lambda case, tokens: None)
    case = document["cases"][0]  # type: ignore[index]
    assert case["tokens"] == recording.tokens == sum(r.generated for r in recording.rollouts)
    assert case["row_steps"] + case["accepted"] >= case["tokens"]
    if name == "none":
        assert case["row_steps"] == case["tokens"]


def test_cutting_leaves_no_context_at_the_end() -> None:
    one = replace(rollout("a", range(10)), context=((2, 5), (7, 9)))
    for length in range(11):
        cut = one.cut(length)
        assert len(cut.tokens) <= length
        assert all(stop < len(cut.tokens) for _, stop in cut.context)
        assert np.array_equal(cut.tokens, one.tokens[: len(cut.tokens)])
    assert Selection(max_tokens=4).select([], [one]).rollouts[0].tokens.tolist() == [0, 1]
