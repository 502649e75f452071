"""Reads vLLM's schedules and configuration into the plain numbers of `serving`, by attribute reads alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rolltree.serving.limits import EngineShape
from rolltree.serving.timing import Scheduled


def engine_shape(config: Any) -> EngineShape:
    """Return what must be known of an engine, by its `VllmConfig`."""
    scheduler = config.scheduler_config
    tokens = getattr(scheduler, "max_num_scheduled_tokens", None) or scheduler.max_num_batched_tokens
    return EngineShape(
        max_draft=int(config.speculative_config.num_speculative_tokens),
        vocab=int(config.model_config.get_vocab_size()),
        max_length=int(config.model_config.max_model_len),
        max_requests=int(scheduler.max_num_seqs),
        step_tokens=int(tokens),
        model=str(getattr(config.model_config, "model", "")),
    )


def scheduled(schedule: Any) -> Scheduled:
    """Return the shape of a step."""
    drafts = schedule.scheduled_spec_decode_tokens
    rows, drafted = len(schedule.num_scheduled_tokens), sum(map(len, drafts.values()))
    return Scheduled(
        rows=rows,
        drafted=drafted,
        longest=max(map(len, drafts.values()), default=0),
        continues=bool(schedule.scheduled_cached_reqs.req_ids),
        read=max(0, schedule.total_num_scheduled_tokens - rows - drafted),
    )


class Reading:
    """How far prompts that are read in parts will be after the step that runs."""

    def __init__(self) -> None:
        self._read: dict[str, int] = {}

    def begin_step(self, schedule: Any, *, decodes: bool) -> None:
        """Note what the step reads; `decodes`: nothing."""
        self._read.clear()
        if decodes:
            return
        cached = schedule.scheduled_cached_reqs
        before = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        before |= {new.req_id: new.num_computed_tokens for new in schedule.scheduled_new_reqs}
        counts = schedule.num_scheduled_tokens
        self._read.update({id: before[id] + count for id, count in counts.items() if id in before})

    def unread(self, ids: Sequence[str], sampled: Sequence[Sequence[int]], lengths: np.ndarray) -> int:
        """Return tokens of prompts that no step has read yet.

        Args:
            ids: of each row.
            sampled: tokens of each row in this step, none while its prompt is being read.
            lengths: of each row, prompt and output.

        """
        if not self._read:
            return 0
        rows = (row for row, new in enumerate(sampled) if not new and ids[row] in self._read)
        return sum(max(0, int(lengths[row]) - self._read[ids[row]]) for row in rows)
