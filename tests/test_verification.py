"""Acceptance rules: paths against a plain walk, layout, and properties that hold for every single row.

That emitted tokens follow the policy is in test_exactness.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree.sampling import (
    RowParams,
    SamplingParams,
    at,
    policy_log_probs,
    verify_coupled,
    verify_one_hot,
)
from rolltree.sampling.paths import accepted_path
from tests.toy_policy import depths


def walk(ok, parents, length):
    """Accepted path of one row, node by node."""
    path = [0]
    while True:
        children = [i for i in range(1, length + 1) if parents[i] == path[-1] and ok[i]]
        if not children:
            return path
        path.append(children[0])


@st.composite
def trees(draw):
    """(ok, parents, lengths) of a batch; padding holds rubbish."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    lengths = [draw(st.integers(0, width - 1)) for _ in range(rows)]
    parents = [[draw(st.integers(0, i - 1 if 0 < i <= n else 99)) for i in range(width)] for n in lengths]
    ok = [[draw(st.booleans()) for _ in range(width)] for _ in range(rows)]
    return torch.tensor(ok), torch.tensor(parents), torch.tensor(lengths)


@given(trees())
@settings(max_examples=300, deadline=None)
def test_accepted_path_is_the_walk_to_the_first_ok_child(tree):
    ok, parents, lengths = tree
    path, count = accepted_path(ok, parents, lengths)
    assert ((path >= 0) & (path < ok.shape[1])).all()
    for b, row in enumerate(path.tolist()):
        assert row[: count[b] + 1] == walk(ok[b].tolist(), parents[b].tolist(), int(lengths[b]))


@given(trees())
@settings(max_examples=100, deadline=None)
def test_a_chain_is_a_tree_without_forks(tree):
    ok, _, lengths = tree
    parents = torch.arange(-1, ok.shape[1] - 1).clamp(min=0).expand(ok.shape)
    chain_path, chain_count = accepted_path(ok, None, lengths)
    tree_path, tree_count = accepted_path(ok, parents, lengths)
    assert torch.equal(chain_count, tree_count)
    for b, n in enumerate(chain_count.tolist()):
        assert torch.equal(chain_path[b, : n + 1], tree_path[b, : n + 1])


@pytest.mark.parametrize("width", range(1, 20))
def test_one_refusal_near_the_root_stops_the_longest_path(width):
    parents = torch.arange(-1, width - 1).clamp(min=0)[None]
    for refused in range(1, width):
        ok = torch.ones(1, width, dtype=torch.bool)
        ok[0, refused] = False
        assert accepted_path(ok, parents, torch.tensor([width - 1]))[1].tolist() == [refused - 1]
    assert accepted_path(torch.ones(1, width, dtype=torch.bool), parents, torch.tensor([width - 1]))[1] == width - 1


def test_coupled_by_hand():
    #          0 ── 1(7) ── 3(9)        target after the root 8: node 2, then 5: node 4 (the first of two), then 6
    #            └─ 2(8) ─┬ 4(5)
    #                     └ 5(5)
    parents = torch.tensor([[0, 0, 0, 1, 2, 2]])
    draft = torch.tensor([[1, 7, 8, 9, 5, 5]])
    target = torch.tensor([[8, 9, 5, 2, 6, 3]])
    verified = verify_coupled(target, draft, parents, torch.tensor([5]))
    assert verified.accepted.tolist() == [2]
    assert verified.path[0, :3].tolist() == [0, 2, 4]
    assert verified.tokens[0, :3].tolist() == [8, 5, 6]
    cut = verify_coupled(target, draft, parents, torch.tensor([3]))
    assert (cut.accepted.tolist(), cut.tokens[0, :2].tolist()) == ([1], [8, 5])


def test_coupled_chain_stops_at_the_first_mismatch_and_at_the_length():
    draft = torch.tensor([[0, 1, 2, 3]] * 4)
    target = torch.tensor([[1, 2, 3, 4], [1, 9, 3, 4], [9, 2, 3, 4], [1, 2, 3, 4]])
    verified = verify_coupled(target, draft, None, torch.tensor([3, 3, 3, 1]))
    assert verified.accepted.tolist() == [3, 1, 0, 1]
    emitted = [row[: n + 1] for row, n in zip(verified.tokens.tolist(), verified.accepted.tolist(), strict=True)]
    assert emitted == [[1, 2, 3, 4], [1, 9], [9], [1, 2]]


ROWS, VOCAB = 3000, 7
SHAPE = (0, 0, 0, 0, 1, 1, 2)


def case(shape=SHAPE, siblings_differ=True):
    """Random policies and drafts for both rejection rules."""
    random = torch.Generator().manual_seed(5)
    log_p = (torch.randn(ROWS, len(shape), VOCAB, generator=random) * 1.5).log_softmax(-1)
    draft = torch.randint(0, VOCAB, (ROWS, len(shape)), generator=random)
    if siblings_differ:
        draft[:, 1:4] = torch.rand(ROWS, VOCAB, generator=random).argsort(-1)[:, :3]
    lengths = torch.randint(0, len(shape), (ROWS,), generator=random)
    seeds = np.arange(ROWS, dtype=np.uint64)
    positions = np.broadcast_to(4 + depths(shape), (ROWS, len(shape)))
    return log_p, draft, torch.tensor(shape).expand(ROWS, -1), lengths, seeds, positions


def refused_children(path, accepted, draft, parents, lengths):
    """Per row, the tokens of all children of the last accepted node."""
    for b in range(ROWS):
        last = path[b, accepted[b]]
        yield {int(draft[b, i]) for i in range(1, int(lengths[b]) + 1) if parents[b, i] == last}


@pytest.mark.parametrize("siblings_differ", [True, False])
def test_one_hot_never_emits_what_it_has_just_refused(siblings_differ):
    log_p, draft, parents, lengths, seeds, positions = case(siblings_differ=siblings_differ)
    path, accepted, tokens = verify_one_hot(log_p, draft, parents, lengths, seeds, positions)
    final = tokens.gather(1, accepted[:, None])[:, 0].tolist()
    refused = refused_children(path, accepted, draft, parents, lengths)
    assert not any(token in children for token, children in zip(final, refused, strict=True))
    assert 0 < accepted.sum() < ROWS
    for b in range(ROWS):
        n = int(accepted[b])
        assert draft[b, path[b, 1 : n + 1]].tolist() == tokens[b, :n].tolist()


def test_a_repeated_sibling_is_never_accepted():
    log_p, draft, parents, lengths, seeds, positions = case()
    draft[:, 2] = draft[:, 1]
    path, accepted, _ = verify_one_hot(log_p, draft, parents, lengths, seeds, positions)
    taken = path[accepted > 0, 1]
    assert set(taken.tolist()) == {1, 3}


def test_rejection_repeats_itself_and_ignores_the_rows_beside():
    arguments = case()
    whole = verify_one_hot(*arguments)
    again = verify_one_hot(*(part[500:600] for part in arguments))
    assert all(torch.equal(a, w[500:600]) for a, w in zip(again, whole, strict=True))


def test_padding_is_ignored():
    log_p, draft, parents, lengths, seeds, positions = case()
    padding = torch.arange(len(SHAPE)) > lengths[:, None]
    rubbish = (draft.masked_fill(padding, 10**6), parents.masked_fill(padding, -(10**6)))
    clean = verify_one_hot(log_p, draft, parents, lengths, seeds, positions)
    dirty = verify_one_hot(log_p, *rubbish, lengths, seeds, positions)
    for b in range(ROWS):
        n = int(clean.accepted[b]) + 1
        assert torch.equal(clean.path[b, :n], dirty.path[b, :n])
        assert torch.equal(clean.tokens[b, :n], dirty.tokens[b, :n])


def test_one_hot_chain_is_a_tree_without_forks():
    log_p, draft, _, lengths, seeds, _ = case()
    chain = tuple(max(i - 1, 0) for i in range(len(SHAPE)))
    positions = np.broadcast_to(4 + depths(chain), (ROWS, len(chain)))
    parents = torch.tensor(chain).expand(ROWS, -1)
    a = verify_one_hot(log_p, draft, None, lengths, seeds, positions)
    b = verify_one_hot(log_p, draft, parents, lengths, seeds, positions)
    assert torch.equal(a.accepted, b.accepted)
    emitted = torch.arange(len(chain)) <= a.accepted[:, None]
    assert torch.equal(a.tokens[emitted], b.tokens[emitted])


def test_certain_policy_leaves_no_room():
    """Every row has one possible token: it is emitted, drafted or not, and never a filtered one."""
    log_p, draft, _, lengths, seeds, positions = case()
    certain = policy_log_probs(log_p.flatten(0, 1), RowParams.of([SamplingParams(temperature=0)])).view_as(log_p)
    path, accepted, tokens = verify_one_hot(certain, draft, None, lengths, seeds, positions)
    emitted = torch.arange(len(SHAPE)) <= accepted[:, None]
    assert (at(certain, path, tokens)[emitted] == 0).all()


def test_all_siblings_together_leave_nothing():
    """Children that hold the whole mass: one of them is taken, up to rounding."""
    parents = torch.zeros(ROWS, 4, dtype=torch.int64)
    draft = torch.tensor([0, 0, 1, 2]).expand(ROWS, -1)
    log_p = torch.tensor([0.2, 0.5, 0.3, 0.0]).log().expand(ROWS, 4, 4)
    positions = np.broadcast_to(np.array([0, 1, 1, 1]), (ROWS, 4))
    seeds = np.arange(ROWS, dtype=np.uint64)
    verified = verify_one_hot(log_p, draft, parents, torch.full((ROWS,), 3), seeds, positions)
    assert (verified.accepted == 1).all()
    assert (verified.tokens[:, :2] < 3).all()
