"""The native forest against the naive oracle, as a Hypothesis state machine with an integrity walk after every rule."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from rolltree._native import Drafts, Forest
from tests.oracle import UNIT, NaiveTree, Text

TOKENS = st.integers(0, 3)
WORDS = st.lists(TOKENS, min_size=0, max_size=6)


def ints(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def draft(forest: Forest, handle: int, width: int = 6, tree: bool = False) -> tuple[list[int], list[int], list[float]]:
    out = Drafts(1, width)
    forest.draft_batch(np.array([handle], np.int64), np.full(1, width, np.int32), 0.0, 1, tree, out)
    n = int(out.lengths[0])
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
        tokens, parents, _ = draft(self.forest, handle)
        assert parents == list(range(-1, len(tokens) - 1))
        for i, token in enumerate(tokens):
            _, after = self.model.continuations(handle, tokens[:i])
            assert after[token] == max(after.values())
        if len(tokens) < 6:
            assert not self.model.continuations(handle, tokens)[1]

    @rule(handle=handles)
    def tree_drafts_known_text(self, handle: int) -> None:
        tokens, parents, survival = draft(self.forest, handle, tree=True)
        assert len({(p, t) for p, t in zip(parents, tokens, strict=True)}) == len(tokens)
        for i, parent in enumerate(parents):
            assert parent < i
            assert parent < 0 or survival[i] <= survival[parent]
        if tokens:
            _, after = self.model.continuations(handle, [])
            assert {t for t, p in zip(tokens, parents, strict=True) if p < 0} <= set(after)

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
