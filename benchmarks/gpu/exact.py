"""Is speculation exact on this device? Identity at T = 0, identity at T = 1 by coupled noise, and a chi-square test of
what is sampled against enumerated probabilities.

In float32 near ties are decided canonically, so rollouts must be identical; in 16 bits they may part where two scores
are as good as equal, and how often they do is reported beside how often the engine parts from itself at another batch
size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rolltree.config import DraftConfig
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request, Result
from rolltree.sampling import SamplingParams

FALSE_ALARM = 1e-4
LENGTH = 3  # tokens of the enumerated continuations
PROMPT = [1, 4, 2]
VOCAB = 6


def check_identity(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, temperature: float, batch: int, max_tokens: int,
    stop: tuple[int, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """Rollouts with drafts (chain, tree; second pass over a warm cache) beside rollouts without.

    Returns:
        `{temperature, rollouts, chain, tree, other_batch}`; the last three are `{identical, first_difference}`: how
        many rollouts, and the median place where the others part. `other_batch`: no drafts, half the batch size.

    """
    requests = [
        Request(list(p), SamplingParams(temperature=temperature, max_tokens=max_tokens, stop_token_ids=stop, seed=i))
        for i, p in enumerate(prompts)
    ]
    longest = max(map(len, prompts)) + max_tokens + 1

    def run(slots: int, drafter: TreeDrafter | None) -> list[Result]:
        engine = Engine(model, EngineConfig(slots=slots, max_length=longest), drafter)
        if drafter is not None:
            engine.generate(requests)
        return engine.generate(requests)

    plain = run(batch, None)
    return {
        "temperature": temperature,
        "rollouts": len(requests),
        "chain": _compare(plain, run(batch, TreeDrafter())),
        "tree": _compare(plain, run(batch, TreeDrafter(config=DraftConfig(shape="tree")))),
        "other_batch": _compare(plain, run(max(1, batch // 2), None)),
    }


def _compare(a: Sequence[Result], b: Sequence[Result]) -> dict[str, Any]:
    places = []
    for one, two in zip(a, b, strict=True):
        if one.token_ids != two.token_ids:
            pairs = zip(one.token_ids, two.token_ids, strict=False)
            places.append(
                next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(one.token_ids), len(two.token_ids)))
            )
    middle = float(np.median(places)) if places else None
    return {"identical": len(a) - len(places), "first_difference": middle}


def check_distribution(
    device: str, dtype: torch.dtype, *, samples: int = 20_000, batch: int = 512
) -> list[dict[str, Any]]:
    """Counts of all continuations of a tiny random model, drafting a lot, against probabilities by plain forwards.

    Returns:
        For every rule and draft shape `{rule, shape, samples, chi_square, degrees, p_value, accepted, exact}`.

    """
    model = tiny_model().to(device, dtype)  # type: ignore[arg-type, unused-ignore]
    expected = enumerated(model)
    cases = []
    for rule, shape in itertools.product(("coupled", "one-hot"), ("chain", "tree")):
        drafter = TreeDrafter(config=DraftConfig(shape=shape, max_draft=4, min_survival=0.0))  # type: ignore[arg-type]
        config = EngineConfig(slots=batch, max_length=16, max_draft=4, rule=rule)  # type: ignore[arg-type]
        engine = Engine(model, config, drafter)
        requests = [Request(PROMPT, SamplingParams(max_tokens=LENGTH, seed=i)) for i in range(samples)]
        drawn = [tuple(r.token_ids) for r in engine.generate(requests)]
        cases.append({"rule": rule, "shape": shape, **chi_square(drawn, expected), "accepted": engine.stats.accepted})
    return cases


def tiny_model() -> PreTrainedModel:
    """A random Llama of 6 tokens, far from uniform."""
    torch.manual_seed(3)
    model: PreTrainedModel = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.train(False)
    return model


def enumerated(model: PreTrainedModel) -> dict[tuple[int, ...], float]:
    """Probability of every continuation of LENGTH tokens, by plain forwards."""
    texts = list(itertools.product(range(VOCAB), repeat=LENGTH))
    ids = torch.tensor([[*PROMPT, *text] for text in texts], device=model.device)
    with torch.inference_mode():
        log_p = model(input_ids=ids).logits.float().log_softmax(-1)
    at = len(PROMPT) - 1
    each = log_p[:, at : at + LENGTH].gather(2, ids[:, len(PROMPT) :, None])[:, :, 0].sum(1).double().exp().cpu()
    return dict(zip(texts, (each / each.sum()).tolist(), strict=True))


def chi_square(drawn: Sequence[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> dict[str, Any]:
    """Pearson's test; cells that expect fewer than 5 are merged. `exact`: the p-value is at least FALSE_ALARM."""
    count = dict.fromkeys(expected, 0)
    for text in drawn:
        count[text] += 1
    n = len(drawn)
    big = [text for text, p in expected.items() if n * p >= 5]
    cells = [(count[text], n * expected[text]) for text in big]
    rest = (n - sum(seen for seen, _ in cells), n - sum(wanted for _, wanted in cells))
    cells += [rest] if rest[1] >= 5 else []
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    degrees = len(cells) - 1
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    p_value = float(torch.special.gammaincc(half[0], half[1]))
    return {
        "samples": n, "chi_square": statistic, "degrees": degrees, "p_value": p_value, "exact": p_value >= FALSE_ALARM,
    }  # fmt: skip
