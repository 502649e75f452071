"""How fast trees come back from a store, and how long the calls of an engine take while they do.

A store holds rollouts of many prompts, texts as in `pauses`. Rebuilding: one thread makes every tree, from the file to
the forest, while nothing else runs. Pauses: an engine's batch drafts and takes tokens in, and prompts that have no
tree are opened all the time; timed is every call by itself, with trees that come back in the background and, for
comparison, in `open`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rolltree.bench.pauses import COST, Text, Watch
from rolltree.cache import RolloutCache
from rolltree.config import GIB, CacheConfig, DraftConfig
from rolltree.drafting import TreeDrafter
from rolltree.rebuilding import Rebuilding
from rolltree.store import RolloutStore
from rolltree.types import Int32Array

LONGEST_REBUILT = 4096
"""Tokens of a stored rollout, so that the benchmark's trees take some 100 MB."""
LIVE, CHUNK = 64, 4
"""Requests of the batch, and tokens that each emits in a step."""


def measure_rebuild(
    *, prompts: int = 32, samples: int = 16, length: int = 2048, steps: int = 256,
    progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:  # fmt: skip
    """Measure.

    Returns:
        `{prompts, rollouts, tokens, tokens_per_second, milliseconds: {background, blocking: {call: {p50, p99, max}}}}`.

    """
    with TemporaryDirectory() as folder, RolloutStore(Path(folder) / "rollouts.db") as store:
        progress("rebuild, filling a store")
        texts = [Text(seed, length) for seed in range(prompts)]
        for text in texts:
            for _ in range(samples):
                store.add(text.prompt, text.rollout())
        store.flush()
        progress("rebuild")
        tokens = prompts * samples * length
        return {
            "prompts": prompts,
            "rollouts": prompts * samples,
            "tokens": tokens,
            "tokens_per_second": tokens / _seconds(store, texts),
            "milliseconds": {
                when: _pauses(store, texts, when, length, steps).milliseconds() for when in ("background", "blocking")
            },
        }


def _cache(store: RolloutStore, when: Rebuilding) -> RolloutCache:
    return RolloutCache(CacheConfig(capacity_bytes=8 * GIB), store=store, rebuild=when)


def _seconds(store: RolloutStore, texts: list[Text]) -> float:
    """Of making all trees again."""
    cache = _cache(store, "background")
    began = time.perf_counter()
    for text in texts:
        cache.expect(text.prompt)
    cache.wait()
    return time.perf_counter() - began


def _pauses(store: RolloutStore, texts: list[Text], when: Rebuilding, length: int, steps: int) -> Watch:
    """An engine's calls while each of the prompts is opened once."""
    watch, drafter = Watch(), TreeDrafter(_cache(store, when), DraftConfig(), cost=COST)
    stranger = Text(len(texts), length + CHUNK * steps)
    handles = np.array([drafter.open(stranger.prompt) for _ in range(LIVE)], np.int64)
    rows: list[Int32Array] = [stranger.rollout() for _ in range(LIVE)]
    offsets = (CHUNK * np.arange(LIVE + 1)).astype(np.int32)
    every, waiting = max(1, steps // len(texts)), list(texts)
    for step in range(steps):
        if step % every == 0 and waiting:
            with watch("open"):
                drafter.open(waiting.pop().prompt)
        with watch("draft"):
            drafter.draft(handles, np.full(LIVE, 16, np.int32))
        emitted = np.concatenate([row[step * CHUNK : (step + 1) * CHUNK] for row in rows])
        with watch("advance"):
            drafter.advance(handles, emitted, offsets)
    drafter.cache.wait()
    return watch
