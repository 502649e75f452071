"""Replays recorded rollouts through the real engine: the model runs and samples at full cost, then the recorded token
is taken instead of the sampled one. So dummy weights of any shape have the acceptance of a real run.

A draft is accepted exactly when it equals the recorded text, which was a sample of its policy: for one-hot drafts the
rate is that of a real run (docs/gpu.md). Nothing here says anything about text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rolltree.bench.engine import make_drafter
from rolltree.bench.trained import Remembered
from rolltree.bench.workload import Group
from rolltree.budget import CostModel
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.engine.step import VerifyStep
from rolltree.engine.verify import UInt64Array, Verifier, _Nodes
from rolltree.sampling import RowParams, SamplingParams
from rolltree.types import Int32Array

DRAFTERS = ("none", "ngram", "suffix", "rolltree", "rolltree-tree")
HOST_PHASES = ("draft", "update")


class ForcedVerifier(Verifier):
    """Samples as ever, then puts the recorded tokens in place; a request's seed is its index among `texts`."""

    def __init__(self, usual: Verifier, texts: Sequence[Int32Array]) -> None:
        super().__init__(rule="coupled", tie_margin=0.0, sample_elements=usual.sample_elements, stats=usual.stats)
        self._draw = usual._draw
        longest = max(map(len, texts))
        self._texts = np.stack([np.pad(text, (0, longest - len(text))) for text in texts])

    def _sample(self, step: VerifyStep, logits: torch.Tensor, params: RowParams, seeds: UInt64Array) -> _Nodes:
        nodes = super()._sample(step, logits, params, seeds)
        row = seeds[step.layout.row_of].astype(np.int64)
        place = step.positions.clip(max=self._texts.shape[1] - 1)
        nodes.tokens[:] = self._texts[row, place]
        nodes.logprobs[:] = 0.0  # dummy weights of 16 bits may overflow: that is no failure here
        return nodes


def run_forced(
    model: PreTrainedModel, groups: Sequence[Group], *, batch: int, name: str, max_draft: int, cost: CostModel | None,
    compile: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Generate every rollout of `groups` once, with the drafter `name` warmed by their history.

    Returns:
        The case: seconds, tokens, tokens_per_step, drafted_per_step, acceptance_rate, seconds by phase, host_share (of
        drafting and update in a step), identical (every rollout came out as it was recorded).

    """
    vocab = int(model.config.vocab_size)
    groups = [_folded(group, vocab) for group in groups]
    texts = [text for group in groups for text in group.now]
    drafter = make_drafter(
        name, cost, max_draft, [Remembered(group.prompt, text, 0) for group in groups for text in group.history]
    )
    if isinstance(drafter, TreeDrafter):
        drafter.cache.set_version(1)
    longest = max(len(group.prompt) + len(text) for group in groups for text in group.now)
    config = EngineConfig(slots=batch, max_length=longest + 1, max_draft=max_draft, compile=compile)
    engine = Engine(model, config, drafter)
    engine._verifier = ForcedVerifier(engine._verifier, texts)
    prompts = [group.prompt for group in groups for _ in group.now]
    requests = [
        Request(prompt, SamplingParams(max_tokens=len(text), seed=index))
        for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    begin = time.perf_counter()
    results = engine.generate(requests)  # ends with a copy to the host: the clock waits for the device
    seconds = time.perf_counter() - begin
    stats = engine.stats
    steps = sum(stats.seconds.values()) - stats.seconds["prefill"]
    return {
        "batch": batch,
        "max_draft": max_draft,
        "drafter": name,
        "tokens": stats.tokens,
        "seconds": seconds,
        "tokens_per_second": stats.tokens / seconds,
        "steps": stats.steps,
        "tokens_per_step": stats.tokens / stats.row_steps,
        "drafted_per_step": stats.drafted / stats.row_steps,
        "acceptance_rate": stats.accepted / stats.drafted if stats.drafted else 0.0,
        "phase_seconds": dict(stats.seconds),
        "host_share": sum(stats.seconds[phase] for phase in HOST_PHASES) / steps,
        "host_microseconds_per_step": sum(stats.seconds[phase] for phase in HOST_PHASES) / stats.steps * 1e6,
        "identical": [r.token_ids for r in results] == [text.tolist() for text in texts],
    }


def _folded(group: Group, vocab: int) -> Group:
    """Token ids inside the model's vocabulary: its text has no meaning anyhow."""
    return Group(group.prompt % vocab, [t % vocab for t in group.history], [t % vocab for t in group.now if len(t)])
