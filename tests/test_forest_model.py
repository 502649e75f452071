"""The native forest against the naive oracle, as a Hypothesis state machine with an integrity walk after every rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from rolltree._native import Drafts, Forest
from tests.oracle import UNIT, NaiveTree, Text

TOKENS = st.integers(0, 3)
WORDS = st.lists(TOKENS, min_size=0, max_size=6)


def ints(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def draft(
    forest: Forest, handle: int, width: int = 6, tree: bool = False, raw: bool = False
) -> tuple[list[int], list[int], list[float]]:
    out = Drafts(1, width)
    forest.draft_batch(np.array([handle], np.int64), np.full(1, width, np.int32), 0.0, 1, tree, out, raw)
    n = int(out.lengths[0])
    if raw:
        return out.tokens[0, :n].tolist(), out.parents[0, :n].tolist(), out.survival[0, :n].tolist()
    one = Drafts(1, width)
    forest.draft_one(handle, width, 0.0, 1, tree, one)
    assert one.tokens[0, :n].tolist() == out.tokens[0, :n].tolist()
    return out.tokens[0, :n].tolist(), out.parents[0, :n].tolist(), out.survival[0, :n].tolist()


class ForestMachine(RuleBasedStateMachine):
    handles = Bundle("handles")

    @initialize(prompt=WORDS, depth=st.integers(2, 6), window=st.integers(0, 4))
    def start(self, prompt: list[int], depth: int, window: int) -> None:
        self.forest = Forest(depth=depth, window=window)
        self.tree = self.forest.add_tree(ints(prompt))
        self.model = NaiveTree(prompt, depth, window)

    @rule(target=handles, reader=st.booleans(), from_prompt=st.booleans())
    def open(self, reader: bool, from_prompt: bool) -> int:
        handle = self.forest.open(self.tree, 0, reader, from_prompt)
        self.model.live[handle] = Text(reader=reader, from_prompt=from_prompt)
        return handle

    @rule(target=handles, n=st.integers(2, 5))
    def open_siblings(self, n: int) -> object:
        return multiple(*[self.open(False, True) for _ in range(n)])

    @rule(handle=handles, tokens=WORDS, context=st.booleans())
    def append(self, handle: int, tokens: list[int], context: bool) -> None:
        self.forest.append(handle, ints(tokens), context)
        self.model.live[handle].add(tokens, self.model.context_weight if context else UNIT)

    @rule(handle=handles, token=TOKENS, times=st.integers(1, 12))
    def repeat(self, handle: int, token: int, times: int) -> None:
        for _ in range(times):
            self.forest.append_token(handle, token)
        self.model.live[handle].add([token] * times, UNIT)

    @rule(handle=handles, token=TOKENS, often=st.integers(0, 3))
    def fan_out(self, handle: int, token: int, often: int) -> None:
        """One token before forty others: a state with so many children that they lie in a hash table."""
        others = [*range(10, 50), *[10 + 7 * often] * often]
        self.append(handle, [part for other in others for part in (token, other)], False)

    @rule(handle=consumes(handles), keep=st.booleans())
    def close(self, handle: int, keep: bool) -> None:
        self.forest.close(handle, keep)
        self.model.close(handle, keep)
        self.all_counts_agree()

    @rule(tokens=st.lists(TOKENS, min_size=1, max_size=8))
    def finish(self, tokens: list[int]) -> None:
        handle = self.open(False, True)
        self.append(handle, tokens, False)
        self.close(handle, True)

    @rule(tokens=WORDS, forgotten=st.lists(TOKENS, min_size=1, max_size=3))
    def forget_then_draft(self, tokens: list[int], forgotten: list[int]) -> None:
        """A text that leaves must not stand in the way of a shorter context that still goes on."""
        gone, here = self.open(False, True), self.open(False, True)
        self.append(gone, tokens + forgotten, False)
        self.append(here, tokens, False)
        self.close(gone, False)
        self.drafts_the_best_continuation(here)
        self.close(here, False)

    @rule(handle=handles)
    def drafts_the_best_continuation(self, handle: int) -> None:
        """The paper's rule, which has a simple oracle: the largest share after the longest suffix."""
        tokens, parents, survival = draft(self.forest, handle, raw=True)
        assert parents == list(range(-1, len(tokens) - 1))
        expected = 1.0
        for i, token in enumerate(tokens):
            _, after = self.model.continuations(handle, tokens[:i])
            assert after[token] == max(after.values())
            expected *= after[token] / sum(after.values())
            assert survival[i] == pytest.approx(expected, rel=1e-5)
        if len(tokens) < 6:
            assert not self.model.continuations(handle, tokens)[1]
        matched = np.zeros(1, np.int32)
        self.forest.matches(np.array([handle], np.int64), matched)
        assert matched[0] == self.model.continuations(handle, [])[0]

    @rule(handle=handles)
    def ranked_chains_are_known_text(self, handle: int) -> None:
        tokens, parents, survival = draft(self.forest, handle)
        assert parents == list(range(-1, len(tokens) - 1))
        assert survival == sorted(survival, reverse=True)
        assert all(0 < s <= 1 for s in survival)
        for i, token in enumerate(tokens):
            assert token in self.model.all_continuations(handle, tokens[:i])
        if len(tokens) < 6:
            assert not self.model.all_continuations(handle, tokens)

    @rule(handle=handles)
    def tree_drafts_known_text(self, handle: int) -> None:
        tokens, parents, survival = draft(self.forest, handle, tree=True)
        assert len({(p, t) for p, t in zip(parents, tokens, strict=True)}) == len(tokens)
        assert survival == sorted(survival, reverse=True)
        for i, parent in enumerate(parents):
            assert parent < i
            path: list[int] = []
            at = parent
            while at >= 0:
                path.insert(0, tokens[at])
                at = parents[at]
            assert tokens[i] in self.model.all_continuations(handle, path)

    @rule(handle=handles, token=TOKENS)
    def learning_is_sound(self, handle: int, token: int) -> None:
        """Settling teaches the ranker; whatever it learns, drafts stay known text and counts stay exact."""
        out, accepted = Drafts(1, 6), np.zeros(1, np.int32)
        one = np.array([handle], np.int64)
        self.forest.draft_batch(one, np.full(1, 6, np.int32), 0.0, 1, False, out)
        rows, emitted, offsets = np.zeros(1, np.int32), ints([token]), ints([0, 1])
        self.forest.settle(one, out, rows, out.lengths.copy(), emitted, offsets, accepted)
        assert accepted[0] == (out.lengths[0] > 0 and out.tokens[0, 0] == token)
        self.model.live[handle].add([token], UNIT)

    @rule(text=WORDS)
    def counts_agree(self, text: list[int]) -> None:
        if 0 < len(text) <= self.model.depth:
            assert self.forest.count(self.tree, ints(text)) == self.model.counts()[tuple(text)]

    @rule()
    def all_counts_agree(self) -> None:
        for text, count in self.model.counts().items():
            assert self.forest.count(self.tree, ints(list(text))) == count

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "forest"):
            assert self.forest.check(self.tree) == ""


ForestMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestForest = ForestMachine.TestCase


ROLLOUTS = st.lists(st.tuples(st.integers(0, 4), st.lists(TOKENS, min_size=1, max_size=6), st.booleans()), max_size=25)
HEAVIEST = 64 * UNIT
"""Weight of a version at which all weights are taken anew, with the newest at one unit."""


@given(prompt=WORDS, rollouts=ROLLOUTS, window=st.integers(1, 6), decay=st.sampled_from([0.5, 0.8]))
@settings(max_examples=200, deadline=None)
def test_versions_weigh_by_age(
    prompt: list[int], rollouts: list[tuple[int, list[int], bool]], window: int, decay: float
) -> None:
    """Versions rise from rollout to rollout; counts are those of the naive tree, weights and rescaling included."""
    forest, model = Forest(depth=5, window=window, decay=decay), NaiveTree(prompt, 5, window)
    tree = forest.add_tree(ints(prompt))
    version = reference = 0
    kept: list[tuple[int, list[int]]] = []

    def weight(of: int) -> int:
        return max(1, round(UNIT * decay ** (reference - of)))

    for rise, text, keep in rollouts:
        version += rise
        handle = forest.open(tree, version)
        if weight(version) > HEAVIEST:
            reference = version
        forest.append(handle, ints(text))
        forest.close(handle, keep)
        if keep:
            kept = [*kept, (version, text)][-window:]
        model.kept = [Text(tokens=t, weights=[weight(v)] * len(t)) for v, t in kept]
        for found, count in model.counts().items():
            assert forest.count(tree, ints(list(found))) == count
        assert forest.check(tree) == ""
