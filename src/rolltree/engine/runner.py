"""Runs the model: packed forwards over the slot cache, and plain forwards where a near tie needs a canonical
answer.

The model is somebody's training model: inside `active()` it is in evaluation mode with slot attention,
outside untouched. Knows cache rows and tokens, but no requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rolltree.engine.attention import NAME, attention_of, register
from rolltree.engine.families import ModelShape
from rolltree.engine.kv_cache import SlotCache
from rolltree.engine.layout import Layout, Trees
from rolltree.engine.plan import ForwardInput, Planner
from rolltree.types import Int32Array, Int64Array


class Runner:
    """One model with its cache."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache, shape: ModelShape) -> None:
        register()
        self.model, self.cache = model, cache
        self._planner = Planner(cache, shape.group)
        self._plain_attention: str | None = None
        # A 4-d mask is passed through by every family: none is built, and GPT-2's padding check (a host sync)
        # is skipped.
        self._no_mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=shape.device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Evaluation mode, slot attention and inference mode inside the block; may be nested."""
        if self._plain_attention is not None:
            yield
            return
        training = [module for module in self.model.modules() if module.training]  # a frozen part may not be
        with attention_of(self.model, NAME) as before, torch.inference_mode():
            self._plain_attention = before
            if training:
                self.model.train(False)
            try:
                yield
            finally:
                self._plain_attention = None
                for module in training:
                    module.training = True

    def logits(self, layout: Layout, tokens: Int64Array, start: Int64Array, trees: Trees | None) -> Tensor:
        """Logits [N, V] of packed `tokens` [N] of cache rows 0..B-1, whose first `start` [B] columns are
        committed.
        """
        plan = self._planner.plan(layout, tokens, None, start, trees)
        logits: Tensor = self._call(self.model, plan).logits[0]
        return logits

    def prefill(self, rows: Int64Array, pieces: list[Int32Array], start: Int64Array) -> None:
        """Write the keys and values of one prompt piece per row, from column `start` [B] on."""
        layout = Layout.of(np.array([len(piece) for piece in pieces]))
        tokens = np.concatenate(pieces).astype(np.int64)
        self._call(self.model.base_model, self._planner.plan(layout, tokens, rows, start, None))

    def plain_logits(self, prefix: Int32Array) -> Tensor:
        """Logits [1, V] after `prefix` by the model's own attention, no cache: a function of the prefix
        alone.
        """
        assert self._plain_attention is not None
        ids = torch.from_numpy(prefix.astype(np.int64)).to(self.cache.data.device)[None]
        with attention_of(self.model, self._plain_attention):
            logits: Tensor = self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0]
        return logits

    def reference_logits(self, text: Int32Array) -> Tensor:
        """Logits [T, V] after each token of `text` [T] by the model's own forward."""
        assert self._plain_attention is not None
        ids = torch.from_numpy(text.astype(np.int64)).to(self.cache.data.device)[None]
        with attention_of(self.model, self._plain_attention):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return logits

    def _call(self, module: torch.nn.Module, plan: ForwardInput):  # type: ignore[no-untyped-def]
        return module(
            input_ids=plan.token_ids,
            position_ids=plan.positions,
            attention_mask=self._no_mask,
            use_cache=False,
            rolltree_plan=plan.attention,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says so: by a class of its own on CUDA, by a bare RuntimeError on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
