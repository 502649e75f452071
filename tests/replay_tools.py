"""Rollouts to replay, and a drafter that is told what to draft."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from rolltree.budget import CostModel
from rolltree.replay.drafters.base import ReplayDrafter, chains
from rolltree.replay.profiles import Measured
from rolltree.replay.records import Rollout
from rolltree.types import DraftBatch, Int32Array, Int64Array, TokenIds

UNIT = Measured("unit", CostModel(base=1.0, token=1e-12))
"""Every step takes one second."""


def rollout(prompt_id: str, tokens: Sequence[int], *, sample: int = 0, step: int = 0) -> Rollout:
    prompt = np.array([900 + ord(c) for c in prompt_id], np.int32)
    return Rollout(
        prompt_id=prompt_id, prompt=prompt, tokens=np.array(tokens, np.int32), step=step, sample=sample, file="f.jsonl"
    )


def random_rollouts(seed: int, *, prompts: int = 4, samples: int = 3, length: int = 60, step: int = 0) -> list[Rollout]:
    """Samples that share phrases with their siblings and with themselves, over a small vocabulary."""
    random_ = random.Random(seed)
    out = []
    for p in range(prompts):
        own = random.Random(p)  # the same phrases in every step
        phrases = [[own.randrange(40) for _ in range(own.randrange(3, 9))] for _ in range(6)]
        for s in range(samples):
            tokens = list[int]()
            while len(tokens) < 1 + random_.randrange(length):
                tokens += random_.choice(phrases) if random_.random() < 0.8 else [random_.randrange(40)]
            out.append(rollout(f"p{p}", tokens or [1], sample=s, step=step))
    return out


class Scripted(ReplayDrafter):
    """Drafts what `propose(text so far, limit)` says; keeps what it was told, in order."""

    def __init__(self, propose=lambda text, limit: []) -> None:  # type: ignore[no-untyped-def]
        self.propose = propose
        self.texts: dict[int, list[int]] = {}
        self.log: list[tuple[object, ...]] = []

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        handle = len(self.texts)
        self.texts[handle] = []
        self.log.append(("open", handle, key))
        return handle

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        self.log.append(("draft", *handles.tolist()))
        width = int(limits.max(initial=1))
        pairs = zip(handles.tolist(), limits.tolist(), strict=True)
        return chains([self.propose(self.texts[h], n) for h, n in pairs], None, width)

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        assert tokens.dtype == np.int32
        assert offsets[-1] == len(tokens)
        self.log.append(("advance", *handles.tolist()))
        for row, handle in enumerate(handles.tolist()):
            self.texts[handle] += tokens[offsets[row] : offsets[row + 1]].tolist()

    def close(self, handle: int, *, keep: bool = True) -> None:
        self.log.append(("close", handle))
