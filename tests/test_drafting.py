from __future__ import annotations

import numpy as np
import pytest

from rolltree import CacheConfig, CostModel, DraftConfig, RolloutCache, TreeDrafter
from rolltree._native import gumbel_noise
from rolltree.errors import InvalidInputError
from rolltree.types import Drafter

PROMPT = [1, 2, 3]
TEXT = [10, 11, 12, 13, 14, 15, 16, 17]


def drafter(**settings: object) -> TreeDrafter:
    cache = RolloutCache(CacheConfig(decay=1.0, shared_window=0))
    for _ in range(8):
        cache.add(PROMPT, TEXT)
    return TreeDrafter(cache, DraftConfig(min_survival=0.0, **settings))  # type: ignore[arg-type]


def step(d: TreeDrafter, handles: list[int], limit: int, emitted: list[list[int]]) -> list[list[int]]:
    h = np.array(handles, np.int64)
    batch = d.draft(h, np.full(len(h), limit, np.int32))
    drafts = [batch.tokens[b, : batch.lengths[b]].tolist() for b in range(len(h))]
    offsets = np.cumsum([0, *map(len, emitted)]).astype(np.int32)
    d.advance(h, np.array([t for row in emitted for t in row], np.int32), offsets)
    return drafts


def test_it_is_a_drafter() -> None:
    assert isinstance(TreeDrafter(), Drafter)


def test_drafts_follow_the_text_and_stop_at_its_end() -> None:
    d = drafter()
    h = d.open(PROMPT)
    assert step(d, [h], 3, [[10, 11]]) == [TEXT[:3]]
    assert step(d, [h], 16, [[12]]) == [TEXT[2:]]


def test_statistics_are_sums_by_source() -> None:
    d = drafter()
    d.cache.set_version(1)
    h = d.open(PROMPT)
    step(d, [h], 4, [[10, 11, 99]])  # 2 of 4 accepted
    step(d, [h], 4, [[99]])
    stats = d.snapshot()
    assert (stats.steps, stats.row_steps, stats.tokens) == (2, 2, 4)
    assert (stats.drafted, stats.accepted) == (4, 2)
    assert (stats.drafted_by_source["history"], stats.accepted_by_source["history"]) == (4, 2)
    assert stats.tokens_per_step == 2.0
    assert stats.acceptance_rate == 0.5
    assert stats.snapshot()["drafted_history"] == 4


def test_sources_are_told_apart() -> None:
    d = TreeDrafter(RolloutCache(CacheConfig(shared_window=0)), config=DraftConfig(min_survival=0.0))
    d.cache.set_version(1)
    a, b = d.open([5, 6, 7, 8]), d.open([5, 6, 7, 8])
    step(d, [a, b], 0, [[50, 51, 52], [50]])
    assert step(d, [b], 2, [[51, 52]]) == [[51, 52]]  # from its sibling
    step(d, [b], 0, [[60, 61, 62, 60, 61]])
    assert step(d, [b], 1, [[62]]) == [[62]]  # from its own text
    step(d, [b], 0, [[5, 6]])
    assert step(d, [b], 1, [[7]]) == [[7]]  # from the prompt
    by = d.snapshot().accepted_by_source
    assert (by["sibling"], by["own"], by["prompt"], by["history"]) == (2, 1, 1, 0)


def test_other_prompts_speak_through_the_shared_tree() -> None:
    d = TreeDrafter(RolloutCache(CacheConfig(shared_window=4)), DraftConfig(min_survival=0.0))
    for prompt in range(3):
        d.cache.add([prompt, 90], TEXT)
    h = d.open([50, 90])  # a prompt never seen, ending like the others
    assert step(d, [h], 3, [[*TEXT[:3], 77]]) == [TEXT[:3]]
    assert d.snapshot().accepted_by_source["shared"] == 3
    for _ in range(4):
        d.cache.add([7], [1])  # four younger rollouts push the text out of the window
    d.close(h, keep=False)
    h = d.open([51, 90])
    assert step(d, [h], 3, [[5]]) == [[]]
    d.cache.check()


def test_the_surer_tree_speaks() -> None:
    d = TreeDrafter(RolloutCache(CacheConfig(shared_window=99, decay=1.0)), DraftConfig(min_survival=0.0))
    for prompt in range(20):
        d.cache.add([prompt, 90], [10, 11, 12])
    for _ in range(8):
        d.cache.add([50, 90], [20, 21, 22])
    h = d.open([50, 90])
    assert step(d, [h], 2, [[20]]) == [[20, 21]]  # its own tree, though the shared one saw 10 more often


def test_verdicts_teach() -> None:
    d = drafter()
    first = None
    for _ in range(60):
        h = d.open(PROMPT)
        batch = d.draft(np.array([h]), np.array([1], np.int32))
        first = first or float(batch.survival[0, 0])
        last = float(batch.survival[0, 0])
        d.advance(np.array([h]), np.array([77], np.int32), np.array([0, 1], np.int32))
        d.close(h, keep=False)
    assert last < first / 3


def test_what_the_budget_left_out_teaches_too() -> None:
    d = drafter()
    d.cost = CostModel(base=0, token=1)  # every draft token costs as much as a step: never worth it
    h = d.open(PROMPT)
    assert step(d, [h], 4, [[10]]) == [[]]
    assert d.cache._forest.learned() == 1
    assert d.stats.drafted == 0


def test_an_acceptance_beyond_the_verified_part_is_not_counted() -> None:
    d = drafter()
    d.cost = CostModel(base=0, token=1)
    h = d.open(PROMPT)
    step(d, [h], 4, [[10]])
    assert d.snapshot().accepted == 0


def test_trees_branch_and_are_judged_by_the_path() -> None:
    d = TreeDrafter(RolloutCache(CacheConfig(shared_window=0)), config=DraftConfig(shape="tree", min_survival=0.0))
    for rollout in ([10, 11, 12], [10, 21, 22], [30, 31]):
        d.cache.add(PROMPT, rollout)
    h = d.open(PROMPT)
    batch = d.draft(np.array([h]), np.array([16], np.int32))
    n = int(batch.lengths[0])
    nodes = list(zip(batch.tokens[0, :n].tolist(), batch.parents[0, :n].tolist(), strict=True))
    assert not batch.is_chain
    assert {t for t, p in nodes if p < 0} == {10, 30}
    ten = [t for t, _ in nodes].index(10)
    assert {t for t, p in nodes if p == ten} == {11, 21}
    d.advance(np.array([h]), np.array([10, 21, 5], np.int32), np.array([0, 3], np.int32))
    assert d.stats.accepted == 2


def test_coupled_drafts_take_the_samplers_branch() -> None:
    cache = RolloutCache()
    for token in (10, 20, 30, 40):
        cache.add(PROMPT, [token, token + 1])
    for seed in range(50):
        d = TreeDrafter(cache, DraftConfig(min_survival=0.0))
        h = d.open(PROMPT, seed=seed, coupled=True)
        batch = d.draft(np.array([h]), np.array([1], np.int32))
        noise = gumbel_noise(np.array([_key(seed, 0)], np.uint64), 41)[0]
        assert int(batch.tokens[0, 0]) == max((10, 20, 30, 40), key=lambda t: noise[t])
        d.close(h, keep=False)


def test_the_noise_decides_where_the_policy_tosses_a_coin() -> None:
    d = TreeDrafter(RolloutCache(CacheConfig(decay=1.0)), DraftConfig(min_survival=0.0))
    for token in (10, 10, 20):
        d.cache.add(PROMPT, [token])
    noise = {seed: gumbel_noise(np.array([_key(seed, 0)], np.uint64), 21)[0] for seed in range(1000)}
    emitted = {seed: max((10, 20), key=lambda t: np.log({10: 2 / 3, 20: 1 / 3}[t]) + g[t]) for seed, g in noise.items()}
    verdicts = [_taught(d, seed, token) for seed, token in emitted.items()]
    accepted, survival = np.array(verdicts[500:]).T
    assert accepted.mean() > 0.95  # 2 of 3 without the noise
    assert abs(survival.mean() - accepted.mean()) < 0.05


def test_the_noise_does_not_overrule_a_policy_that_is_sure() -> None:
    d = TreeDrafter(RolloutCache(CacheConfig(decay=1.0)), DraftConfig(min_survival=0.0))
    for token in (10, 10, 20):  # history has both; the policy has made up its mind
        d.cache.add(PROMPT, [token])
    accepted, survival = np.array([_taught(d, seed, 10) for seed in range(600)][300:]).T
    assert accepted.mean() > 0.99
    assert survival.mean() > 0.95


def test_what_is_likely_under_the_noise_adds_up_to_one_at_most() -> None:
    d = TreeDrafter(RolloutCache(), DraftConfig(shape="tree", min_survival=0.0))
    for token in range(10, 20):
        d.cache.add(PROMPT, [token])
    for seed in range(20):
        batch = d.draft(np.array([d.open(PROMPT, seed=seed, coupled=True)]), np.array([16], np.int32))
        first = batch.survival[0, : batch.lengths[0]][batch.parents[0, : batch.lengths[0]] < 0]
        assert len(first) == 10
        assert 0 < first.sum() < 1


def _taught(d: TreeDrafter, seed: int, token: int) -> tuple[bool, float]:
    """Draft one token with the noise of `seed`, emit `token`: whether it was drafted, and the survival foretold."""
    h = d.open(PROMPT, seed=seed, coupled=True)
    batch = d.draft(np.array([h]), np.array([1], np.int32))
    verdict = bool(batch.tokens[0, 0] == token), float(batch.survival[0, 0])
    d.advance(np.array([h]), np.array([token], np.int32), np.array([0, 1], np.int32))
    d.close(h, keep=False)
    return verdict


def _key(seed: int, position: int) -> int:
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_batches_grow() -> None:
    d = drafter()
    handles = [d.open(PROMPT) for _ in range(300)]
    assert step(d, handles, 2, [[10]] * 300) == [[10, 11]] * 300


def test_rows_may_come_back_in_another_order_or_be_missing() -> None:
    d = drafter()
    a, b, c, late = (d.open(PROMPT) for _ in range(4))
    d.advance(np.array([b]), np.array(TEXT[:4], np.int32), np.array([0, 4], np.int32))
    d.draft(np.array([a, b, c]), np.array([1, 2, 1], np.int32))
    # b accepts both of its two, a none; c failed and is gone; late was not drafted for
    emitted = np.array([*TEXT[4:6], 99, 1, 5], np.int32)
    d.advance(np.array([b, late, a]), emitted, np.array([0, 3, 4, 5], np.int32))
    assert (d.stats.drafted, d.stats.accepted) == (3, 2)
    assert d.stats.tokens == 9
    assert d.cache._forest.generated(late) == 1


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidInputError, match=r"draft\.shape = 'bush'"):
        DraftConfig(shape="bush")  # type: ignore[arg-type]


def floor_of(d: TreeDrafter) -> float:
    return d.floor(4)


def test_the_draft_floor_is_the_higher_of_the_setting_and_what_can_pay() -> None:
    d = drafter()
    d.config = DraftConfig(min_survival=0.1)
    assert floor_of(d) == 0.1
    d.cost = CostModel(base=1.0, token=0.001)  # 4 rows: a token pays from 0.004 on
    assert floor_of(d) == 0.1
    d.cost = CostModel(base=1.0, token=1.0)  # from 0.8 on, of which half is drafted still
    assert floor_of(d) == pytest.approx(0.4)
    d.cost = CostModel(base=1.0, token=1.0, floor=100.0)  # nothing costs anything
    assert floor_of(d) == 0.1
