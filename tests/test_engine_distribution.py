"""What the whole engine emits has the policy's distribution, for every sampling feature and rule, drafting a
lot.

Three checks against probabilities that do not come from the engine: (1) counts of all continuations of length
3, their probabilities enumerated by plain forwards; (2) for each sampling feature, every token of long
rollouts against the probability of its rank, filtered by an own float64 implementation; (3) first tokens of
siblings, in pairs. The false alarm rate of each test is FALSE_ALARM, fixed seeds make it pass or fail for
good. Power: planting a 1 % bias into (2) must raise the alarm.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import rolltree.engine.verify as verify_module
from rolltree.engine import Engine, EngineConfig, Request, Result
from rolltree.sampling import SamplingParams
from rolltree.types import DraftBatch
from tests.engine_tools import tiny_model

torch.set_num_threads(1)
VOCAB = 6
PROMPT = [1, 4, 2]
FALSE_ALARM = 1e-4
MISS = 0.5  # how often a drafted token is not the one drawn, roughly


class Guesser:
    """Drafts a likely continuation of the last token, as a chain or as a tree of both likeliest tokens."""

    def __init__(self, likely: np.ndarray, tree: bool) -> None:
        self.likely, self.tree, self.last, self.next = likely, tree, {}, 0

    def open(self, prompt, *, key=None, seed=None, coupled=False) -> int:
        self.next += 1
        self.last[self.next] = int(prompt[-1])
        return self.next

    def draft(self, handles, limits) -> DraftBatch:
        width = 4
        last = np.array([self.last[int(h)] for h in handles])
        a, b = self.likely[last, 0], self.likely[last, 1]
        if self.tree:  # two roots; each goes on with its likeliest
            tokens = np.stack((b, a, self.likely[a, 0], self.likely[b, 0]), axis=1)
            parents = np.tile([-1, -1, 1, 0], (len(last), 1))
        else:
            tokens = np.stack((a, self.likely[a, 0], b, a), axis=1)
            parents = np.tile([-1, 0, 1, 2], (len(last), 1))
        return DraftBatch(
            tokens=tokens.astype(np.int32), parents=parents.astype(np.int32),
            lengths=np.minimum(limits, width).astype(np.int32),
            survival=np.ones(tokens.shape, np.float32), is_chain=not self.tree,
        )  # fmt: skip

    def advance(self, handles, tokens, offsets) -> None:
        for h, last in zip(handles.tolist(), tokens[offsets[1:] - 1].tolist(), strict=True):
            self.last[h] = last

    def close(self, handle: int, *, keep: bool = True) -> None:
        del self.last[handle]


def model() -> torch.nn.Module:
    return tiny_model("llama", vocab=VOCAB, seed=3)


def guesser(tree: bool) -> Guesser:
    with torch.no_grad():
        logits = model()(input_ids=torch.tensor([[*PROMPT, t] for t in range(VOCAB)])).logits[:, -1]
    return Guesser(logits.argsort(descending=True).numpy(), tree)


def run(requests: list[Request], *, rule: str, tree: bool, slots: int = 500) -> tuple[Engine, list[Result]]:
    engine = Engine(model(), EngineConfig(slots=slots, max_length=128, max_draft=4, rule=rule), guesser(tree))
    results = engine.generate(requests)
    assert engine.stats.drafted > 0.5 * engine.stats.row_steps
    assert 0.05 < engine.stats.accepted / engine.stats.drafted < 0.95
    return engine, results


def policy(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities [..., V] in float64: temperature, top-k, top-p, min-p in this order, written from the
    definitions.
    """
    p = np.exp((logits - logits.max(-1, keepdims=True)) / params.temperature)
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, -1)
    if params.top_k:
        ranked[..., params.top_k :] = 0
        ranked /= ranked.sum(-1, keepdims=True)
    if params.top_p < 1:
        ranked[np.cumsum(ranked, -1) - ranked >= params.top_p] = 0
        ranked /= ranked.sum(-1, keepdims=True)
    ranked[ranked < params.min_p * ranked[..., :1]] = 0
    np.put_along_axis(p, order, ranked / ranked.sum(-1, keepdims=True), -1)
    return p


@pytest.mark.parametrize(("rule", "tree"), [(r, t) for r in ("coupled", "one-hot") for t in (False, True)])
def test_enumerated_continuations(rule: str, tree: bool) -> None:
    paths = list(itertools.product(range(VOCAB), repeat=3))
    with torch.no_grad():
        log_p = model()(input_ids=torch.tensor([PROMPT + list(p) for p in paths])).logits.double().log_softmax(-1)
    expected = np.exp([sum(log_p[i, 2 + j, t].item() for j, t in enumerate(p)) for i, p in enumerate(paths)])
    assert expected.sum() == pytest.approx(1)
    count = 10_000
    _, results = run(
        [Request(PROMPT, SamplingParams(max_tokens=3, seed=i)) for i in range(count)], rule=rule, tree=tree
    )
    index = {p: i for i, p in enumerate(paths)}
    observed = np.bincount([index[tuple(r.token_ids)] for r in results], minlength=len(paths))
    rare = expected * count < 5
    pool = lambda x: np.append(x[~rare], x[rare].sum())  # noqa: E731
    assert stats.chisquare(pool(observed), pool(expected) * count).pvalue > FALSE_ALARM


def exact_policy(results: list[Result], params: SamplingParams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each emitted token: the policy there [N, V], the token [N] and the one before it [N]."""
    ids = np.array([r.prompt_token_ids + r.token_ids for r in results])
    with torch.no_grad():
        logits = torch.cat([model()(input_ids=part).logits for part in torch.tensor(ids).split(200)])
    p = policy(logits[:, len(PROMPT) - 1 : -1].double().numpy(), params).reshape(-1, VOCAB)
    return p, ids[:, len(PROMPT) :].ravel(), ids[:, len(PROMPT) - 1 : -1].ravel()


def policy_p_value(results: list[Result], params: SamplingParams) -> float:
    """Chi-square of the ranks of emitted tokens, and of how often the guesser's first choice was emitted, both
    against the exact probabilities after each prefix; the smaller of the two, corrected.
    """
    p, emitted, last = exact_policy(results, params)
    every, order = np.arange(len(p)), np.argsort(-p, axis=1, kind="stable")
    guess = guesser(False).likely[last, 0]
    ranks = martingale_p_value(order == emitted[:, None], np.take_along_axis(p, order, 1))
    guesses = martingale_p_value((guess == emitted)[:, None], p[every, guess][:, None])
    return 2 * min(ranks, guesses)


def martingale_p_value(hit: np.ndarray, p: np.ndarray) -> float:
    """Chi-square of the summed indicators [N, C] of disjoint events against their conditional probabilities."""
    deviation = (hit - p).sum(0)
    covariance = np.diag(p.sum(0)) - p.T @ p
    free = np.linalg.matrix_rank(covariance, tol=1e-6 * len(p))
    return float(stats.chi2.sf(deviation @ np.linalg.pinv(covariance, rcond=1e-6) @ deviation, free))


FEATURES = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "all": {"temperature": 1.3, "top_k": 5, "top_p": 0.95, "min_p": 0.05},
}


def long_rollouts(feature: str, rule: str, tree: bool) -> tuple[list[Result], SamplingParams]:
    params = SamplingParams(max_tokens=50, **FEATURES[feature])
    requests = [Request(PROMPT, SamplingParams(max_tokens=50, seed=i, **FEATURES[feature])) for i in range(2000)]
    return run(requests, rule=rule, tree=tree, slots=1000)[1], params


@pytest.mark.parametrize("feature", FEATURES)
def test_each_sampling_feature(feature: str) -> None:
    results, params = long_rollouts(feature, "coupled", tree=feature in ("plain", "top_k", "min_p"))
    assert policy_p_value(results, params) > FALSE_ALARM
    p, emitted, _ = exact_policy(results, params)
    exact = p[np.arange(len(p)), emitted]
    assert (exact > 0).all(), "a filtered token was emitted"
    np.testing.assert_allclose(np.concatenate([r.logprobs for r in results]), np.log(exact), atol=2e-4)


@pytest.mark.parametrize("tree", [False, True])
def test_one_hot_rejection_with_every_feature(tree: bool) -> None:
    assert policy_p_value(*long_rollouts("all", "one-hot", tree)) > FALSE_ALARM


@pytest.mark.parametrize("tree", [False, True])
def test_a_planted_bias_of_one_percent_is_caught(tree: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One percent of the probability goes to the drafted token, at every node that has a draft."""
    exact, rng = verify_module.verify_coupled, torch.Generator().manual_seed(0)

    def biased(target, draft, parents, lengths):
        missed = torch.zeros_like(target, dtype=torch.bool)
        child = torch.zeros_like(target)
        for i in range(1, draft.shape[1]):
            above = torch.full((len(target), 1), i - 1) if parents is None else parents[:, i : i + 1]
            child.scatter_(1, above, draft[:, i : i + 1])
            missed.scatter_(1, above, (i <= lengths)[:, None])
        missed &= child != target
        lucky = missed & (torch.rand(target.shape, generator=rng) < 0.01 / MISS)
        return exact(torch.where(lucky, child, target), draft, parents, lengths)

    monkeypatch.setattr(verify_module, "verify_coupled", biased)
    assert policy_p_value(*long_rollouts("plain", "coupled", tree)) < FALSE_ALARM


def test_siblings_are_independent() -> None:
    """Chi-square of independence over pairs of neighbours in a group; one seed for both would fail it."""
    requests = [Request(PROMPT, SamplingParams(max_tokens=2, seed=i)) for i in range(10_000)]
    _, results = run(requests, rule="coupled", tree=True)

    def p_value(pairs: np.ndarray) -> float:
        table = np.zeros((VOCAB, VOCAB))
        np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
        keep = table.sum(1) > 100, table.sum(0) > 100
        return float(stats.chi2_contingency(table[keep[0]][:, keep[1]]).pvalue)

    for position in (0, 1):
        drawn = np.array([r.token_ids[position] for r in results])
        assert p_value(drawn.reshape(-1, 2)) > FALSE_ALARM
        same = np.stack((drawn, np.where(np.arange(len(drawn)) % 20 == 0, drawn, np.roll(drawn, 1))), axis=1)
        assert p_value(same) < FALSE_ALARM  # planted: 5 % of the pairs share their seed
