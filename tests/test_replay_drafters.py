"""The drafters that a replay compares, against slow and plain readings of their rules."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rolltree.errors import InvalidInputError, MissingDependencyError
from rolltree.replay.drafters import DRAFTERS, DrafterSpec, Limits, parse_drafters
from tests.replay_tools import random_rollouts, rollout


def feed(drafter, handle, tokens):
    drafter.advance(np.array([handle]), np.array(tokens, np.int32), np.array([0, len(tokens)], np.int32))


def draft(drafter, handles, limit):
    batch = drafter.draft(np.array(handles), np.full(len(handles), limit, np.int32))
    return [
        (batch.tokens[b, :n].tolist(), batch.parents[b, :n].tolist(), batch.survival[b, :n].tolist())
        for b, n in enumerate(batch.lengths.tolist())
    ]


# Prompt lookup


def naive_lookup(text, limit, longest=4, shortest=2):
    for n in range(longest, shortest - 1, -1):
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == text[-n:]:
                return text[start + n : start + n + limit]
    return []


@pytest.mark.parametrize("options", ["", ":longest=5:shortest=1"])
def test_prompt_lookup_copies_what_followed_last(options):
    drafter = DrafterSpec.parse("ngram" + options).make(Limits(max_draft=5))
    bounds = {"longest": 5, "shortest": 1} if options else {}
    found = 0
    for rollout_ in random_rollouts(4, prompts=3, samples=2):
        handle, text = drafter.open(rollout_.prompt), rollout_.prompt.tolist()
        for token in rollout_.tokens.tolist():
            expected = naive_lookup(text, 5, **bounds)
            assert draft(drafter, [handle], 5)[0][0] == expected
            found += bool(expected)
            feed(drafter, handle, [token])
            text.append(token)
        drafter.close(handle)
    assert found > 5


def test_prompt_lookup_finds_the_first_tokens_of_the_prompt():
    drafter = DrafterSpec.parse("ngram").make(Limits(max_draft=2))
    handle = drafter.open(np.array([5, 6, 7, 8, 9, 5, 6], np.int32))
    assert draft(drafter, [handle], 2)[0][0] == [7, 8]


# The paper's rule


def continuations(prompt, rollouts, context):
    """What follows `context` in the prompt (counted once) and in each rollout after the prompt."""
    counts = {}
    for text, first in [(prompt, 0), *((prompt + r, len(prompt)) for r in rollouts)]:
        for i in range(max(first, len(context)), len(text)):
            if text[i - len(context) : i] == context:
                counts[text[i]] = counts.get(text[i], 0) + 1
    return counts


def longest_match(prompt, rollouts, text):
    """What follows the longest suffix of `text` with a continuation, and the length of that suffix."""
    for n in range(min(len(text), 63), 0, -1):
        if counts := continuations(prompt, rollouts, text[-n:]):
            return counts, n
    return {}, 0


def check_srt(prompt, rollouts, own, drafted, limit, shape, per_match):
    """Every node has the product of the shares on its path; none left out has a larger one; B(q) nodes. Returns q."""
    text, known = prompt + own, [*rollouts, own]
    q = longest_match(prompt, known, text)[1]
    nodes = min(limit, max(1, round(per_match * q))) if q else 0
    chosen, left_out = {(): 1.0}, dict[tuple[int, ...], float]()
    for path, product in [((), 1.0), *drafted]:
        if path:
            assert product == pytest.approx(left_out.pop(path), rel=1e-5)
            assert product >= max(left_out.values(), default=0) * (1 - 1e-5)
            chosen[path] = product
        counts, _ = longest_match(prompt, known, text + list(path))
        below = {(*path, token): product * n / sum(counts.values()) for token, n in counts.items()}
        left_out = below if shape == "chain" else left_out | below
    assert len(chosen) - 1 == nodes or not left_out
    return q


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize("per_match", [1, 2.5])
def test_srt_follows_the_paper(shape, per_match):
    drafter = DrafterSpec.parse(f"srt:draft_per_match={per_match}").make(Limits(max_draft=12, shape=shape))
    old = random_rollouts(5, prompts=1, samples=4, step=0)
    drafter.remember(old)
    drafter.begin(1)
    rollouts, deep = [r.tokens.tolist() for r in old], 0
    for now in random_rollouts(7, prompts=1, samples=3, step=1):
        handle, own = drafter.open(now.prompt, key=now.prompt_id), list[int]()
        for token in now.tokens.tolist():
            feed(drafter, handle, [token])
            own.append(token)
            tokens, parents, survival = draft(drafter, [handle], 12)[0]
            paths = list[tuple[int, ...]]()
            for drafted, parent in zip(tokens, parents, strict=True):
                paths.append((*(paths[parent] if parent >= 0 else ()), drafted))
            pairs = list(zip(paths, survival, strict=True))
            deep += check_srt(now.prompt.tolist(), rollouts, own, pairs, 12, shape, per_match) >= 3
        rollouts.append(own)
    assert deep > 15


# The peer


def test_suffix_is_the_real_one():
    peer = pytest.importorskip("arctic_inference.suffix_decoding")
    drafter = DrafterSpec.parse("suffix:depth=4:factor=2").make(Limits(max_draft=6))
    cache = peer.SuffixDecodingCache(max_tree_depth=4)
    old, now = random_rollouts(5, step=0), random_rollouts(6, step=1)[0]
    drafter.remember(old)
    for index, r in enumerate(old):
        cache.start_request(index, r.prompt)
        cache.add_active_response(index, r.tokens)
        cache.stop_request(index)
    handle = drafter.open(now.prompt)
    cache.start_request("now", now.prompt)
    text, drafted = now.prompt.tolist(), 0
    for token in now.tokens.tolist():
        expected = cache.speculate("now", np.array(text[-4:], np.int32), max_spec_tokens=6, max_spec_factor=2.0)
        tokens, _, survival = draft(drafter, [handle], 6)[0]
        assert tokens == list(expected.token_ids)
        assert survival == pytest.approx(list(expected.probs))
        drafted += len(tokens)
        feed(drafter, handle, [token])
        cache.add_active_response("now", np.array([token], np.int32))
        text.append(token)
    assert drafted > 10


def test_a_missing_peer_is_named_with_its_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    with pytest.raises(MissingDependencyError, match="make bench-peer"):
        DrafterSpec.parse("suffix").make(Limits())


def test_all_leaves_out_a_peer_that_is_not_installed(monkeypatch):
    assert "rolltree" in [spec.name for spec in parse_drafters(["all"])]
    monkeypatch.setattr("rolltree.replay.drafters.names.find_spec", lambda name: None)
    assert "suffix" not in [spec.name for spec in parse_drafters(["all"])]
    assert [spec.name for spec in parse_drafters(["suffix"])] == ["suffix"]


# Ours


def test_history_never_reads_live_text():
    drafter = DrafterSpec.parse("history:min_survival=0").make(Limits(max_draft=4))
    text = [1, 2, 3, 4, 5, 1, 2, 3]
    a, b = (drafter.open(np.array([9, 9], np.int32), key="p") for _ in range(2))
    feed(drafter, a, text)
    feed(drafter, b, text[:2])
    assert [tokens for tokens, _, _ in draft(drafter, [a, b], 4)] == [[], []]
    drafter.close(a)
    drafter.close(b)
    done = rollout("p", text)
    drafter.end([done])
    c = drafter.open(done.prompt, key="p")
    feed(drafter, c, [1, 2])
    assert draft(drafter, [c], 2)[0][0] == [3, 4]


def test_the_clairvoyant_finds_the_longest_piece_after_any_suffix():
    drafter = DrafterSpec.parse("ceiling:shared=false").make(Limits(max_draft=6))
    drafter.remember([rollout("p", [1, 2, 3, 4, 5, 8, 2, 3, 6, 7, 9])])
    handle = drafter.open(rollout("p", [1]).prompt, key="p")
    feed(drafter, handle, [1, 2, 3])
    for truth, expected in (([4, 5, 0], 2), ([6, 7, 9], 3), ([9, 9, 9], 0), ([6, 7, -1], 2)):
        drafter.reveal(np.array([[*truth, -1]], np.int32))
        tokens, _, _ = draft(drafter, [handle], 6)[0]
        assert tokens == truth[:expected]


def test_sources_and_memory_are_reported():
    drafter = DrafterSpec.parse("rolltree").make(Limits())
    drafter.remember(random_rollouts(1))
    held, tokens = drafter.memory()
    assert held > tokens > 100
    assert {"own", "sibling", "history"} <= set(drafter.sources())


# Names


def test_names_carry_options():
    specs = parse_drafters(["ngram,rolltree:decay=0.5", "ngram", "srt:draft_per_match=2:window=3"])
    assert [spec.text for spec in specs] == ["ngram", "rolltree:decay=0.5", "srt:draft_per_match=2:window=3"]
    assert specs[1].make(Limits()).cache.config.decay == 0.5
    wide = DrafterSpec.parse("rolltree:shape=tree:max_draft=64")
    assert wide.limits(Limits(max_draft=4)) == Limits(max_draft=64, shape="tree")
    assert set(DRAFTERS) == {"none", "ngram", "suffix", "history", "srt", "rolltree", "ceiling"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("medusa", "one of none, ngram"),
        ("none:depth=3", "without options"),
        ("suffix:width=3", "an option of cached, depth"),
        ("rolltree:depth", "option=value"),
        ("rolltree:depth=1", "cache.depth"),
        ("rolltree:depth=deep", "a whole number there"),
        ("rolltree:shape=bush", "chain or tree"),
        ("ceiling:shared=1", "true or false"),
        ("ngram:longest=0", "a whole number from 1"),
        ("suffix:depth=1.5", "a whole number from 1"),
        ("suffix:min_prob=nan", "a number from 0"),
    ],
)
def test_wrong_names_and_options_are_named(text, message):
    with pytest.raises(InvalidInputError, match=message):
        DrafterSpec.parse(text).make(Limits())
