"""Which models the engine can run, and the sizes it needs to know of them. Refuses the others by name.

Knows what the configuration tells. A family that nobody has met is found out by `selfcheck`, at its first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from rolltree.errors import InvalidInputError

DEFAULT_LENGTH = 4096  # the cache of a 128k context would not fit beside a training model
NEEDS = "a decoder-only model with full causal attention in every layer (such as Llama, Qwen2, Qwen3, GPT-2)"
OWN_ATTENTION = {"diffllama": "differential attention"}
"""Families by `model_type` that use transformers' attention interface in a way that slot attention cannot follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a supported model."""

    layers: int
    kv_heads: int
    group: int
    """Query heads per key/value head."""
    head_dim: int
    vocab: int
    context: int
    """Largest number of positions."""
    stable: int | None
    """Positions up to which rotary factors do not depend on the longest row of a batch; None: they never do."""
    name: str
    """What messages call the model."""
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Read the sizes; raise InvalidInputError for a family that cannot work."""
        config = model.config
        _refuse(model)
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            layers=config.num_hidden_layers,
            kv_heads=kv_heads,
            group=heads // kv_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab=config.vocab_size,
            context=getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH,
            stable=stable_positions(config),
            name=family_name(model),
            dtype=model.dtype,
            device=model.device,
        )

    def longest(self, asked: int | None) -> int:
        """`engine.max_length` as it is used; raise InvalidInputError where the model is not right that far."""
        if self.stable is not None and (asked is None or asked > self.stable):
            fix = f"Set engine.max_length to {min(self.stable, self.context)} or less: up to there the factors stay."
            value = f"{self.name} with rotary factors that depend on the longest row of a batch (longrope, dynamic)"
            raise InvalidInputError("model", value, NEEDS, fix)
        if asked is None:
            return min(self.context, DEFAULT_LENGTH)
        if asked > self.context:
            raise InvalidInputError("engine.max_length", asked, f"at most the model's context of {self.context}")
        return asked


def family_name(model: PreTrainedModel) -> str:
    """Class and family of a model, as a message names it."""
    wrapped = getattr(model, "get_base_model", None)  # of PEFT's adapters
    base = wrapped() if callable(wrapped) else model
    return f"{type(base).__name__} (family {getattr(model.config, 'model_type', 'unknown')!r})"


def stable_positions(config: Any) -> int | None:
    """Positions up to which a model's rotary factors are constants; None where they always are.

    transformers' longrope takes its long factors for all rows as soon as one row of the forward is longer than the
    original context, and dynamic scaling follows the longest row seen: a row's logits then depend on its batch.
    """
    limits = [
        int(rope.get("original_max_position_embeddings") or _original(config))
        for rope in _rope_parameters(config)
        if (kind := str(rope.get("rope_type") or rope.get("type"))) in ("longrope", "su") or "dynamic" in kind
    ]
    return min(limits, default=None)


def usable_positions(config: Any) -> int:
    """Longest sequence that the engine may run with a model; a large number where its configuration does not say."""
    context = getattr(config, "max_position_embeddings", None) or 1 << 30
    return min(int(context), stable_positions(config) or int(context))


def _original(config: Any) -> int:
    named = getattr(config, "original_max_position_embeddings", None)
    return int(named or getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """The rotary settings of a configuration: one mapping, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    yield rope
    yield from (part for part in rope.values() if isinstance(part, Mapping))


def _refuse(model: PreTrainedModel) -> None:
    reason = next(_reasons(model), None)
    if reason is not None:
        raise InvalidInputError("model", f"{family_name(model)} {reason}", NEEDS)


def _reasons(model: PreTrainedModel) -> Iterator[str]:
    """Why the engine cannot run a model."""
    config = model.config
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Some families name a window that they never switch on; `layer_types`, where given, is the truth.
    window = getattr(config, "sliding_window", None) if not getattr(config, "layer_types", None) else None
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        yield "(encoder-decoder)"
    if layer_types != {"full_attention"}:
        yield f"with layers {sorted(layer_types)}"
    if window is not None and getattr(config, "use_sliding_window", True):
        yield f"with a sliding window of {window}"
    if getattr(config, "kv_lora_rank", None):
        yield "with multi-head latent attention"
    if getattr(config, "model_type", None) in OWN_ATTENTION:
        yield f"with {OWN_ATTENTION[config.model_type]}"
    if not getattr(model, "_supports_attention_backend", False):
        yield "(own attention code, no AttentionInterface)"
    if getattr(config, "reorder_and_upcast_attn", False):
        yield "with reorder_and_upcast_attn"
