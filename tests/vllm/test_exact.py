"""Exactness in real vLLM: greedy text is the engine's own, sampled text has the engine's own distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vllm.engines import (
    OPTIONS,
    Told,
    accepted,
    assert_same,
    engine,
    generate,
    model_runner,
    prompts,
    random_model,
    tell,
)

EPOCHS = 2
PROMPTS = 64
SIGMA = 4.2
"""False alarms: 3e-5 for each figure, were the seed not fixed."""
BIAS = 0.01
ROUNDS = 10
"""Of 49,000 tokens: a bias of 1 % stands out by some seven standard errors."""
V2_ROUNDS = 3
"""Of each way to schedule."""
INPUTS = [[1, *[(7 * i + 3 * j) % 60 + 3 for j in range(6)]] for i in range(8)]


@pytest.fixture(name="plain", scope="module")
def fixture_plain() -> list[Told]:
    with engine("none") as llm:
        return tell(llm, prompts(PROMPTS))


@pytest.mark.parametrize("method", ["ngram", "suffix", "rolltree"])
def test_greedy_text_is_that_of_the_plain_engine(method: str, plain: list[Told]) -> None:
    """Token for token, cold and warm; and drafts were accepted, or nothing would have been tested."""
    if method == "suffix":
        pytest.importorskip("arctic_inference")
    with engine(method) as llm:
        for _ in range(EPOCHS):
            assert_same(plain, generate(llm, prompts(PROMPTS)))
        assert accepted(llm) > 1000


@pytest.fixture(name="small", scope="module")
def fixture_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("temperature", "runner", "options"),
    [
        (1.0, "V1", {}),
        (0.7, "V1", {"coupled": True}),
        (1.0, "V2 async", {"coupled": True}),
        (0.7, "V2", {"lengths": "uniform"}),
    ],
)
def test_sampled_text_has_the_models_distribution(
    temperature: float, runner: str, options: dict[str, Any], small: Path
) -> None:
    """Log-probabilities and top-1 hits of 490,000 sampled tokens against the exact conditional distributions.

    The same figures, recomputed with one token in a hundred replaced by the most likely one, must raise the alarm.
    """
    with sampling_engine(small, runner, **options) as llm:
        texts = rollouts(llm, ROUNDS, temperature=temperature)
        assert accepted(llm) > 40_000
    figures = conditional(small, texts, temperature)
    assert len(figures["logp"]) > 480_000
    scores = z_scores(**figures)
    assert all(abs(score) < SIGMA for score in scores.values()), scores
    planted = z_scores(**plant(figures))
    assert max(map(abs, planted.values())) > SIGMA, planted


def test_v2s_standard_verification_has_the_models_distribution(small: Path) -> None:
    """The same figures, half of them sync and half async; and faults of ours that would bias them raise the alarm.

    Drafts that are merely bad (shifted, of another row, a filler taken for one) cannot: they are verified like others.
    """
    texts: list[tuple[int, list[int]]] = []
    biased: dict[str, list[tuple[int, list[int]]]] = {}
    for runner in ("V2", "V2 async"):
        with sampling_engine(small, runner) as llm:
            texts += rollouts(llm, V2_ROUNDS)
            assert accepted(llm) > 10_000 * V2_ROUNDS
            if runner == "V2 async":
                biased = {fault.__name__: faulty(llm, fault) for fault in FAULTS}
    figures = conditional(small, texts)
    scores = z_scores(**figures)
    assert all(abs(score) < SIGMA for score in scores.values()), scores
    planted = z_scores(**plant(figures))
    assert max(map(abs, planted.values())) > SIGMA, planted
    for name, texts in biased.items():
        found = z_scores(**conditional(small, texts))
        assert max(map(abs, found.values())) > SIGMA, (name, found)


def sampling_engine(model: Path, runner: str, **options: Any) -> Any:
    """An engine for many short rollouts of a small model."""
    config = {"rolltree": OPTIONS | options}
    shape = {"skip_tokenizer_init": True, "max_model_len": 64, "max_num_seqs": 256, "additional_config": config}
    return engine(model=model, runner=runner, **shape)


def rollouts(llm: Any, rounds: int, *, temperature: float = 1.0) -> list[tuple[int, list[int]]]:
    """Rollouts of every prompt, each with the number of its prompt: 49,000 tokens a round."""
    requests = [{"prompt_token_ids": prompt} for prompt in INPUTS * 256]
    options = {"temperature": temperature, "max_tokens": 24, "ignore_eos": True, "detokenize": False}
    return [
        (row % len(INPUTS), text) for _ in range(rounds) for row, text in enumerate(generate(llm, requests, **options))
    ]


def faulty(llm: Any, fault: Any) -> list[tuple[int, list[int]]]:
    """A round with a fault in place; each request has a seed of its own."""
    from vllm import SamplingParams

    settings = [
        SamplingParams(seed=i, max_tokens=24, ignore_eos=True, detokenize=False) for i in range(len(INPUTS) * 256)
    ]
    with fault(model_runner(llm).speculator):
        requests = [{"prompt_token_ids": prompt} for prompt in INPUTS * 256]
        outputs = llm.generate(requests, settings, use_tqdm=False)
    return [(row % len(INPUTS), list(output.outputs[0].token_ids)) for row, output in enumerate(outputs)]


@contextmanager
def drafts_that_follow_the_noise(speculator: Any) -> Iterator[None]:
    """As they may where verification is coupled: what a rejected draft leaves is drawn by the noise that chose it."""
    options = speculator.core.options
    speculator.core.options = replace(options, coupled=True)
    yield
    speculator.core.options = options


@contextmanager
def a_cut_that_tells_another_length(speculator: Any) -> Iterator[None]:
    """Rows with several drafts are one token longer than what is verified of them."""
    begin = speculator.rolltree_begin_step

    def tell(schedule: Any, *more: Any) -> Any:
        short = begin(schedule, *more)
        places = short.scheduled_spec_decode_tokens
        fewer = {id: tokens[: max(1, len(tokens) - 1)] for id, tokens in places.items()}
        return replace(short, scheduled_spec_decode_tokens=fewer)

    speculator.rolltree_begin_step = tell
    yield
    del speculator.rolltree_begin_step


FAULTS = (drafts_that_follow_the_noise, a_cut_that_tells_another_length)


def conditional(folder: Path, texts: list[tuple[int, list[int]]], temperature: float = 1.0) -> dict[str, Any]:
    """For every sampled token: its log-probability, the mean and variance of it, the top-1 probability and hit."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows: dict[str, list[Any]] = {name: [] for name in ("logp", "mean", "variance", "top", "hit", "best")}
    for begin in range(0, len(texts), 512):
        part = texts[begin : begin + 512]
        ids = torch.tensor([INPUTS[row] + text for row, text in part])
        start = len(INPUTS[0])
        with torch.no_grad():
            logits = model(ids).logits[:, start - 1 : -1].double() / temperature
        logs = torch.log_softmax(logits, dim=-1)
        chosen = ids[:, start:]
        mean = (logs.exp() * logs).sum(-1)
        top, best = logs.max(-1)
        rows["logp"].append(logs.gather(-1, chosen[..., None])[..., 0].flatten())
        rows["mean"].append(mean.flatten())
        rows["variance"].append(((logs.exp() * logs * logs).sum(-1) - mean**2).flatten())
        rows["top"].append(top.exp().flatten())
        rows["hit"].append((chosen == best).double().flatten())
        rows["best"].append(top.flatten())
    return {name: torch.cat(parts).numpy() for name, parts in rows.items()}


def z_scores(**figures: Any) -> dict[str, float]:
    """Standard scores of the sums; independent draws, so their variances add up.

    `share`: how much of the text is the likeliest token in place of a draw, the score test of just that bias.
    """
    top = figures["top"]
    odds = 1 / top - 1
    return {
        "share": float((figures["hit"] / top - 1).sum() / np.sqrt(odds.sum())),
        "logp": float((figures["logp"] - figures["mean"]).sum() / np.sqrt(figures["variance"].sum())),
        "top-1": float((figures["hit"] - top).sum() / np.sqrt((top * (1 - top)).sum())),
    }


def plant(figures: dict[str, Any]) -> dict[str, Any]:
    """Replace a hundredth of the tokens by the most likely ones."""
    chosen = np.random.default_rng(0).random(len(figures["logp"])) < BIAS
    return figures | {
        "logp": np.where(chosen, figures["best"], figures["logp"]),
        "hit": np.where(chosen, 1.0, figures["hit"]),
    }
