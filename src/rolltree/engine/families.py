"""Which models the engine can run, and the sizes it needs to know of them. Refuses the others by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rolltree.errors import InvalidInputError

DEFAULT_LENGTH = 4096  # the cache of a 128k context would not fit beside a training model
_NEEDS = "a decoder-only model with full causal attention in every layer (such as Llama, Qwen2, Qwen3, GPT-2)"


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
            dtype=model.dtype,
            device=model.device,
        )


def _refuse(model: PreTrainedModel) -> None:
    config, name = model.config, type(model).__name__
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Some families name a window that they never switch on; `layer_types`, where given, is the truth.
    window = getattr(config, "sliding_window", None) if not getattr(config, "layer_types", None) else None
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise InvalidInputError("model", f"{name} (encoder-decoder)", _NEEDS)
    if layer_types != {"full_attention"}:
        raise InvalidInputError("model", f"{name} with layers {sorted(layer_types)}", _NEEDS)
    if window is not None and getattr(config, "use_sliding_window", True):
        raise InvalidInputError("model", f"{name} with a sliding window of {window}", _NEEDS)
    if not getattr(model, "_supports_attention_backend", False):
        raise InvalidInputError("model", f"{name} (own attention code)", f"{_NEEDS} that uses AttentionInterface")
    if getattr(config, "reorder_and_upcast_attn", False):
        raise InvalidInputError("model", f"{name} with reorder_and_upcast_attn", _NEEDS)
