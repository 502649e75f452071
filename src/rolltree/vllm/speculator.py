"""The speculator that vLLM's V2 model runner gets for `rolltree.vllm.Proposer`: drafts from rolltree's trees.

A thin adapter: reads the runner's arrays and schedules into plain data for `ServingCore`, and writes drafts where the
runner looks for them. `propose` comes when the tokens of this step are in the runner's arrays, with async scheduling,
too: that makes the scheduler one step late, not the worker.

Rule for ranks: all ranks of a forward pass verify the same drafts. The first of a tensor-parallel group drafts; what it
has, drafts and their lengths, goes to the others in each step.

Invariants: places that hold no draft carry the row's last sampled token (-1 would reach the embedding); a row that got
no token gets no draft; the scheduler's own schedule is never changed; nothing is raised but where ranks are lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rolltree.serving.requests import Batch
from rolltree.types import Int32Array
from rolltree.vllm import compat_v2
from rolltree.vllm.device_rows import DeviceRows
from rolltree.vllm.ragged import shortened


class Speculator:
    """One worker's side; the runner makes it (see `compat_v2`).

    Args:
        vllm_config: vLLM's configuration.
        device: where the runner works.
        states: the runner's `RequestState`.

    """

    supports_mm_inputs = False
    draft_logits = None
    """Drafts are certain: there is no distribution that they came from."""
    num_query_per_req = 1
    num_extra_query_per_req = 0

    def __init__(self, vllm_config: Any, device: Any, states: Any) -> None:
        import torch

        self._config, self._states = vllm_config, states
        rows = int(vllm_config.scheduler_config.max_num_seqs)
        self.width = int(vllm_config.speculative_config.num_speculative_tokens)
        self._rows = DeviceRows(states, device, rows)
        self._out = torch.zeros(rows, self.width, dtype=torch.int64, device=device)
        self._host = torch.zeros(rows, self.width, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._drafted: dict[str, int] = {}
        """Draft tokens of each request for its next step."""
