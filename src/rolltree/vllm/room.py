"""How many draft tokens the next step of this vLLM can take: `limits` with the numbers of a running engine.

Knows vLLM's configuration and schedules, by plain attribute reads; drafts nothing and knows no request's text. With
several processes for one model every number is the same in each of them: none is measured there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from rolltree.serving.limits import StepLimits
from rolltree.vllm import compat


class StepRoom:
    """The room for drafts beside what a step must hold.

    Args:
        config: vLLM's configuration.
        vocab: words of the model's vocabulary.
        logits_bytes: what the user allows for logits; 0 derives it when the engine is ready.

    """

    def __init__(self, config: Any, *, vocab: int, logits_bytes: int) -> None:
        self._config, self._vocab, self._logits_bytes = config, vocab, logits_bytes
        scheduler = config.scheduler_config
        self.tokens = int(getattr(scheduler, "max_num_scheduled_tokens", None) or scheduler.max_num_batched_tokens)
        self._limits: StepLimits | None = None
        self._read: dict[str, int] = {}

    def __str__(self) -> str:
        given = self._logits_bytes
        size = f"{given / 2**20:.4g} MiB" if given else "half of the memory that is free when the engine is ready"
        return f"{self.tokens} tokens a step and {size} for logits"

    def begin_step(self, schedule: Any) -> None:
        """Note how far prompts that are read in parts will be after this step."""
        drafts, counts = schedule.scheduled_spec_decode_tokens, schedule.num_scheduled_tokens
        self._read.clear()
        if schedule.total_num_scheduled_tokens == len(counts) + sum(map(len, drafts.values())):
            return  # every request decodes
        cached = schedule.scheduled_cached_reqs
        before = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        before |= {new.req_id: new.num_computed_tokens for new in schedule.scheduled_new_reqs}
        self._read.update({id: before[id] + count for id, count in counts.items() if id in before})

    def drafts(self, running: int, ids: Sequence[str], sampled: Sequence[Sequence[int]], lengths: np.ndarray) -> int:
        """Return how many draft tokens the next step can take.

        Args:
            running: requests that have begun and are not finished.
            ids: of each row.
            sampled: tokens of each row in this step, none while its prompt is being read.
            lengths: of each row, prompt and output.

        """
        if self._limits is None:
            self._limits = self._measure()
        reading = 0
        if self._read:
            rows = (row for row, new in enumerate(sampled) if not new and ids[row] in self._read)
            reading = sum(max(0, int(lengths[row]) - self._read[ids[row]]) for row in rows)
        return self._limits.drafts(running, reading)

    def _measure(self) -> StepLimits:
        """Derive the limits, once the engine has taken its memory."""
        config = self._config
        is_alone = config.parallel_config.world_size == 1
        share = None if is_alone else float(config.cache_config.gpu_memory_utilization)
        limits = StepLimits.of(
            requests=config.scheduler_config.max_num_seqs,
            tokens=self.tokens,
            vocab=self._vocab,
            logits_bytes=self._logits_bytes,
            free_bytes=0 if self._logits_bytes else compat.free_bytes(share=share),
        )
        logging.getLogger("vllm.rolltree").info("rolltree: the drafts of a step are cut to %s.", limits)
        return limits
