"""Sampling settings, filters, noise and the coupled sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

from rolltree.errors import InvalidInputError
from rolltree.sampling import (
    ACCEPT,
    RESIDUAL,
    RowParams,
    SamplingParams,
    gumbel,
    log_probs,
    noise,
    policy_log_probs,
    row_keys,
    sample,
    uniform,
)
from rolltree.sampling.params import MIN_TEMPERATURE
from rolltree.sampling.sampler import _best_two
from tests.toy_policy import filtered

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def u64(*values):
    return np.array(values, np.uint64)


def logits(rows, vocab, seed=0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", MIN_TEMPERATURE / 2),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", 1e39),
        ("temperature", 10**400),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_k", 1 << 31),
        ("max_tokens", 1 << 31),
        ("max_tokens", 2.0),
        ("max_tokens", float("inf")),
        ("stop_token_ids", (1 << 31,)),
        ("stop_token_ids", (2.5,)),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("max_tokens", 0),
        ("stop_token_ids", [3]),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", 3),
        ("seed", -1),
        ("seed", 1 << 64),
        ("seed", 0.5),
    ],
)
def test_bad_setting_is_named(name, value):
    with pytest.raises(InvalidInputError, match=rf"^sampling\.{name} = "):
        SamplingParams(**{name: value})


def test_seed_is_drawn_once_and_kept():
    fresh = SamplingParams().with_seed()
    assert fresh.seed is not None
    assert fresh.with_seed() is fresh
    assert fresh.seed != SamplingParams().with_seed().seed
    assert SamplingParams(seed=0).with_seed().seed == 0


# Filters

SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=0),
    SamplingParams(top_k=1),
    SamplingParams(top_k=5),
    SamplingParams(top_k=10_000),
    SamplingParams(top_p=1e-9),
    SamplingParams(top_p=0.7),
    SamplingParams(min_p=0.2),
    SamplingParams(min_p=1.0),
    SamplingParams(temperature=1.7, top_k=9, top_p=0.8, min_p=0.05),
    SamplingParams(temperature=0, top_k=2, top_p=0.5, min_p=0.5),
]


def warped(scores, p):
    """What Hugging Face's generation makes of the same settings."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    steps = [warpers.TemperatureLogitsWarper(float(p.temperature))]
    steps += [warpers.TopKLogitsWarper(p.top_k)] if p.top_k else []
    steps += [warpers.TopPLogitsWarper(p.top_p)] if p.top_p < 1 else []
    steps += [warpers.MinPLogitsWarper(p.min_p)] if p.min_p else []
    for warp in steps:
        scores = warp(None, scores)
    return scores.log_softmax(dim=-1)


@pytest.mark.parametrize("params", [p for p in SETTINGS if not p.greedy])
def test_filters_agree_with_hugging_face(params):
    scores = logits(200, 40)
    torch.testing.assert_close(log_probs(scores, RowParams.of([params])), warped(scores, params))


@pytest.mark.parametrize("params", [p for p in SETTINGS if not p.greedy])
def test_ties_are_cut_as_documented(params):
    scores = logits(200, 40).round()  # Hugging Face sorts unstably: which of equal tokens stays is not defined there
    ours = log_probs(scores, RowParams.of([params]))
    torch.testing.assert_close(ours.sort().values, warped(scores, params).sort().values)
    expected = np.array([filtered(row, params) for row in scores.numpy()])
    np.testing.assert_allclose(ours.exp().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype):
    scores = logits(len(SETTINGS), 40).to(dtype)
    together = RowParams.of(SETTINGS)
    mixed = policy_log_probs(scores, together)
    order = np.random.default_rng(0).permutation(len(SETTINGS))
    assert torch.equal(policy_log_probs(scores[order], together.rows(order)), mixed[order])
    for row, params in enumerate(SETTINGS):
        alone = scores[row : row + 1]
        assert torch.equal(policy_log_probs(alone, RowParams.of([params])), mixed[row : row + 1])
        shared = policy_log_probs(alone.expand(3, -1), RowParams.of([params] * 3).rows(np.array([0, 2, 1])))
        assert torch.equal(shared, mixed[row : row + 1].expand(3, -1))


def test_unused_settings_cost_nothing():
    shared = RowParams.of([SamplingParams(seed=s, max_tokens=s + 1) for s in range(4)])
    assert shared.rows(np.arange(3)) is shared
    assert (shared.temperature, shared.top_k, shared.tail, shared.log_min_p, shared.greedy) == (None,) * 5
    some = RowParams.of([SamplingParams(), SamplingParams(top_k=2), SamplingParams()])
    assert some.cut_rows is not None
    assert some.cut_rows.tolist() == [1]


def test_greedy_row_reports_the_unfiltered_log_probability_at_temperature_one():
    scores, params = logits(3, 9), RowParams.of([SamplingParams(temperature=0, top_k=1)] * 3)
    samples = sample(scores, params, row_keys(u64(1, 2, 3), np.zeros(3, np.int64)))
    assert torch.equal(samples.tokens, scores.argmax(-1))
    torch.testing.assert_close(samples.log_probs, scores.log_softmax(-1).amax(-1))
    best = scores.topk(2).values
    torch.testing.assert_close(samples.margins, best[:, 0] - best[:, 1])
    assert torch.equal(policy_log_probs(scores, params).exp().argmax(-1), scores.argmax(-1))
    assert torch.equal(policy_log_probs(scores, params).exp().sum(-1), torch.ones(3))


def test_greedy_compares_raw_logits():
    scores = torch.tensor([[0.1, np.nextafter(np.float32(0.1), np.float32(1)), 60.0, 60.0]])
    for row in (scores, scores[:, :2]):
        samples = sample(row, RowParams.of([SamplingParams(temperature=0)]), u64(0))
        assert samples.tokens.tolist() == row.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all -inf"])
@pytest.mark.parametrize("params", SETTINGS)
def test_a_failed_row_is_nan_and_alone(bad, params):
    scores = logits(3, 8)
    if bad == "all -inf":
        scores[1] = float("-inf")
    else:
        scores[1, 4] = bad
    keys = row_keys(u64(1, 2, 3), np.zeros(3, np.int64))
    samples = sample(scores, RowParams.of([params] * 3), keys)
    assert samples.log_probs.isnan().tolist() == [False, True, False]
    assert policy_log_probs(scores, RowParams.of([params])).isnan().any(-1).tolist() == [False, True, False]


# Noise


def reference(seed, position, token, domain=0):
    """The definition in Python integers and doubles."""
    z = ((seed ^ domain) + 0x9E3779B97F4A7C15 * (position + 1)) & M64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & M64
    z ^= z >> 31
    x = (token * 0x9E3779B1 + (z & M32)) & M32
    x = ((x ^ x >> 16) * 0x85EBCA6B) & M32
    x = ((x ^ x >> 13) * 0xC2B2AE35) & M32
    x = ((x ^ x >> 16) + (z >> 32)) & M32
    x = ((x ^ x >> 15) * 0x2C1B3C6D) & M32
    x = ((x ^ x >> 12) * 0x297A2D39) & M32
    return ((x ^ x >> 15) + 0.5) / 2**32


@pytest.mark.parametrize("domain", [0, ACCEPT, RESIDUAL])
@pytest.mark.parametrize("torch_only", [False, True], ids=["as built", "torch"])
def test_noise_is_the_documented_hash(domain, torch_only, monkeypatch):
    if torch_only:
        monkeypatch.setattr(noise, "_NATIVE", None)
    random = np.random.default_rng(1)
    seeds = np.append(random.integers(0, M64, 20, np.uint64, endpoint=True), u64(0, 1, M64))
    positions = np.append(random.integers(0, 1 << 20, 20), [0, 1, 7])
    keys = row_keys(seeds, positions, domain)
    rows = zip(seeds.tolist(), positions.tolist(), strict=True)
    v = np.array([[reference(s, p, t, domain) for t in range(70)] for s, p in rows])
    np.testing.assert_allclose(gumbel(keys, 70).numpy(), -np.log(-np.log1p(-v)), atol=1e-6, rtol=3e-7)
    tokens = torch.arange(3, 3 + len(keys))
    picked = v[np.arange(len(keys)), tokens.numpy()]
    np.testing.assert_allclose(uniform(keys, tokens).numpy(), picked, rtol=1e-7)


def test_native_and_torch_noise_agree():
    if noise._NATIVE is None:
        pytest.skip("rolltree._native is not built")
    keys = row_keys(np.arange(2000, dtype=np.uint64), np.zeros(2000, np.int64))
    np.testing.assert_allclose(
        noise._NATIVE(keys, 300), noise._gumbel_torch(keys, 300, "cpu").numpy(), atol=5e-7, rtol=3e-7
    )


def test_uniform_and_gumbel_stay_finite_at_the_ends():
    ends = torch.tensor([-1, 0, 1 << 31 - 1, -(1 << 31)], dtype=torch.int32)  # x = 2**32 - 1, 0, …
    v = noise._unit(ends)
    assert v.tolist() == [(M32 + 0.5) / 2**32, 0.5 / 2**32, (2**30 + 0.5) / 2**32, (2**31 + 0.5) / 2**32]
    high = uniform(row_keys(u64(110_007_719), np.array([0]), ACCEPT), torch.tensor([0]))  # x = 2**32 - 34
    assert high.tolist() == [1 - 2**-24]


def bits(seeds, positions, vocab):
    """Uniforms float64 [rows, vocab], through the Gumbel noise that the sampler sees."""
    g = gumbel(row_keys(seeds, positions), vocab).double().numpy()
    return np.exp(-np.exp(-g))


ROWS, VOCAB, CELLS = 1 << 15, 64, 16  # 2.1 million draws
STREAMS = {
    "consecutive seeds": (np.arange(ROWS, dtype=np.uint64), np.zeros(ROWS, np.int64)),
    "consecutive positions": (np.full(ROWS, 42, np.uint64), np.arange(ROWS)),
    "seeds in the high bits": (np.arange(ROWS, dtype=np.uint64) << np.uint64(49), np.zeros(ROWS, np.int64)),
}
STATISTICS_ALPHA = 1e-3 / (len(STREAMS) * 9)


def quality(v):
    """p-values: uniformity (coarse, fine, per bit), and neighbours in token and row: pairs and correlation."""
    yield chi_square_p(np.bincount((v * 4096).astype(int).ravel(), minlength=4096))
    yield chi_square_p(np.bincount((v * 65536).astype(int).ravel() & 0xFF, minlength=256))
    for a, b in ((v[:, :-1], v[:, 1:]), (v[:-1], v[1:]), (v[:-1, :-1], v[1:, 1:])):
        pair = (a * CELLS).astype(int) * CELLS + (b * CELLS).astype(int)
        yield chi_square_p(np.bincount(pair.ravel(), minlength=CELLS**2))
        z = ((a - 0.5) * (b - 0.5)).sum() * 12 / np.sqrt(a.size)
        yield float(2 * norm.sf(abs(z)))
    yield chi_square_p(np.bincount(v.argmax(axis=1), minlength=v.shape[1]))


def chi_square_p(observed):
    expected = observed.sum() / len(observed)
    return float(chi2.sf(((observed - expected) ** 2 / expected).sum(), len(observed) - 1))


@pytest.mark.parametrize("stream", STREAMS)
def test_noise_is_uniform_and_independent(stream):
    assert min(quality(bits(*STREAMS[stream], VOCAB))) > STATISTICS_ALPHA


@pytest.mark.parametrize("mistake", ["no position", "no avalanche", "tokens share a row"])
def test_the_quality_statistic_refuses_bad_noise(mistake):
    seeds, positions = STREAMS["consecutive positions"]
    if mistake == "no position":
        v = bits(seeds, positions // 2, VOCAB)
    elif mistake == "no avalanche":
        words = (np.arange(VOCAB, dtype=np.uint32) * np.uint32(0x9E3779B1))[None] + positions[:, None].astype(np.uint32)
        v = (words + 0.5) / 2**32
    else:
        v = bits(seeds, positions, VOCAB // 2).repeat(2, axis=1)
    assert min(quality(v)) < STATISTICS_ALPHA


def test_domains_are_apart():
    seeds, zeros = STREAMS["consecutive seeds"]
    keys = [row_keys(seeds, zeros, domain) for domain in (0, ACCEPT, RESIDUAL)]
    assert len(np.unique(np.concatenate(keys))) == 3 * ROWS


# The coupled sampler


def test_sample_is_gumbel_max_with_the_margin_to_the_second():
    scores, params = logits(50, 30), RowParams.of([SamplingParams(temperature=0.8, top_k=7)])
    keys = row_keys(np.arange(50, dtype=np.uint64), np.arange(50))
    log_p, g = log_probs(scores, params), gumbel(keys, 30)
    best = (log_p + g).topk(2)
    samples = sample(scores, params, keys)
    assert torch.equal(samples.tokens, best.indices[:, 0])
    assert torch.equal(samples.margins, best.values[:, 0] - best.values[:, 1])
    assert torch.equal(samples.log_probs, log_p.gather(1, samples.tokens[:, None])[:, 0])


def test_margin_bounds_the_change_that_keeps_the_token():
    log_p, g = logits(2000, 12).log_softmax(-1), gumbel(row_keys(np.arange(2000, dtype=np.uint64), np.arange(2000)), 12)
    tokens, margins = _best_two(log_p + g)
    nudge = (torch.rand(log_p.shape, generator=torch.Generator().manual_seed(3)) - 0.5) * 0.1
    moved, _ = _best_two(log_p + nudge + g)
    assert (moved[margins > 0.1] == tokens[margins > 0.1]).all()
    assert (moved != tokens).any()


def test_exact_ties_and_lonely_tokens():
    tokens, margins = _best_two(torch.tensor([[1.0, 2.0, 2.0], [0.0, -np.inf, -np.inf]]))
    assert tokens.tolist() == [1, 0]
    assert margins.tolist() == [0.0, np.inf]


def test_mixed_greedy_and_sampled_rows():
    scores, keys = logits(4, 20), row_keys(u64(1, 2, 3, 4), np.zeros(4, np.int64))
    settings = [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(top_p=0.5),
        SamplingParams(temperature=0),
    ]
    mixed = sample(scores, RowParams.of(settings), keys)
    for row, params in enumerate(settings):
        alone = sample(scores[row : row + 1], RowParams.of([params]), keys[row : row + 1])
        assert all(torch.equal(a, m[row : row + 1]) for a, m in zip(alone, mixed, strict=True))
