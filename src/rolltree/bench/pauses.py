"""How long any single call of a full cache takes, and what the cache claims to take beside what the process takes.

Long rollouts, full windows, many live requests: the case where one call would have to forget or rebuild much at once.
Each prompt's rollouts are one text with a tenth of the tokens replaced, so that they share and differ as rollouts do.
Timed is every call that a host makes, by itself: `open`, `extend` (of a short tool answer), `draft` and `advance` of
the whole batch, `close`. Trees are filled before the clock starts; then requests end and begin all the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rolltree.budget import CostModel
from rolltree.cache import RolloutCache
from rolltree.config import GIB, CacheConfig, DraftConfig
from rolltree.drafting import TreeDrafter
from rolltree.types import Int32Array

COST = CostModel(base=1.0, token=1e-6)
"""A budget that leaves nothing out."""
CHUNK = 4
"""Tokens that a row emits in a step."""
VOCABULARY, REPLACED = 50_000, 0.1
CALLS = ("open", "extend", "draft", "advance", "close")


class Watch:
    """Seconds of each call, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in CALLS}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside as a call of this name."""
        began = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - began)

    def milliseconds(self) -> dict[str, dict[str, float]]:
        """Median, 99th percentile and longest, by call."""
        return {
            name: {"p50": float(p50), "p99": float(p99), "max": float(np.max(values)) * 1e3}
            for name, values in self.seconds.items()
            if values
            for p50, p99 in [np.percentile(values, [50, 99]) * 1e3]
        }


class Text:
    """Rollouts of one prompt."""

    def __init__(self, seed: int, length: int) -> None:
        self.random, self.prompt = np.random.default_rng(seed), np.array([seed, 1, 2, 3], np.int32)
        self.common = self.random.integers(0, VOCABULARY, length, dtype=np.int32)

    def rollout(self) -> Int32Array:
        """Return one, int32 [length]."""
        text = self.common.copy()
        other = self.random.random(len(text)) < REPLACED
        text[other] = self.random.integers(0, VOCABULARY, int(other.sum()), dtype=np.int32)
        return text


def measure_pauses(
    lengths: Sequence[int] = (8192, 32768),
    *,
    live: int = 256,
    samples: int = 16,
    steps: int = 400,
    cache: CacheConfig | None = None,
    progress: Callable[[str], None] = lambda case: None,
) -> list[dict[str, object]]:
    """Measure each rollout length, tokens; `live` requests, `samples` a prompt, `steps` timed steps.

    Returns:
        For each `{case, length, live_requests, window, milliseconds: {call: {p50, p99, max}}, bytes, rss_bytes,
        rss_over_bytes}`; `rss_bytes` is what the process grew by.

    """
    cases = []
    for length in lengths:
        progress(f"pauses, rollouts of {length} tokens, {live} live")
        cases.append(_measure(length, live, samples, steps, cache or CacheConfig(capacity_bytes=8 * GIB)))
    return cases


def _measure(length: int, live: int, samples: int, steps: int, config: CacheConfig) -> dict[str, object]:
    resident, watch = _resident(), Watch()
    drafter = TreeDrafter(RolloutCache(config), DraftConfig(), cost=COST)
    texts = [Text(seed, length) for seed in range(max(1, live // samples))]
    for text in texts:
        for _ in range(config.window):
            drafter.cache.add(text.prompt, text.rollout())
    requests = _Requests(drafter, texts, live, watch)
    grown, held = _resident() - resident - requests.bytes, drafter.cache.bytes
    for _ in range(steps):
        requests.step()
    return {
        "case": f"{length} tokens",
        "length": length,
        "live_requests": live,
        "window": config.window,
        "milliseconds": watch.milliseconds(),
        "bytes": held,
        "rss_bytes": grown,
        "rss_over_bytes": grown / held,
    }


class _Requests:
    """Live requests that walk through their rollouts; one that ends makes room for the next."""

    def __init__(self, drafter: TreeDrafter, texts: Sequence[Text], live: int, watch: Watch) -> None:
        self.drafter, self.texts, self.watch = drafter, texts, watch
        self.rows = [self._begin(texts[row % len(texts)], row / live, Watch()) for row in range(live)]

    @property
    def bytes(self) -> int:
        """What the benchmark itself holds of texts."""
        return sum(text.nbytes for _, text, _ in self.rows) + sum(text.common.nbytes for text in self.texts)

    def _begin(self, text: Text, share: float, watch: Watch) -> tuple[int, Int32Array, int]:
        """A request that has generated `share` of its rollout already."""
        rollout = text.rollout()
        with watch("open"):
            handle = self.drafter.open(text.prompt)
        at = int(share * len(rollout)) // CHUNK * CHUNK
        self.drafter.cache.extend(handle, rollout[:at])
        with watch("extend"):
            self.drafter.cache.extend(handle, rollout[:32], context=True)
        return handle, rollout, at

    def step(self) -> None:
        """One engine step, and the end of requests."""
        handles = np.array([handle for handle, _, _ in self.rows], np.int64)
        with self.watch("draft"):
            self.drafter.draft(handles, np.full(len(handles), 16, np.int32))
        chunks = [text[at : at + CHUNK] for _, text, at in self.rows]
        offsets = np.cumsum([0, *map(len, chunks)]).astype(np.int32)
        tokens = np.concatenate(chunks)
        with self.watch("advance"):
            self.drafter.advance(handles, tokens, offsets)
        self.rows = [(handle, text, at + CHUNK) for handle, text, at in self.rows]
        for row, (handle, text, at) in enumerate(self.rows):
            if at >= len(text):
                with self.watch("close"):
                    self.drafter.close(handle)
                self.rows[row] = self._begin(self.texts[row % len(self.texts)], 0.9, self.watch)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * 4096
