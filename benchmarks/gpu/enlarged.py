"""A small model inside a large one: its text, which is real, at the step costs of the large one's shape.

The small model's hidden dimensions and layers are the first ones of the large model, its heads the first ones of each
group. All other weights are random; what they write goes, scaled down to nothing, to hidden dimensions that the small
model's weights do not read.

A norm over D dimensions, all but d of them as good as zero, divides by sqrt(d / D) times what one over d divides by:
its weights carry that factor, its epsilon d / D. The rotary pair i of a head of size h turns as fast as the pair
i H / h of a head of size H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rolltree.errors import InvalidInputError

FAINT = 1e-3
"""Scale of what the other weights write."""
MARK = 2.0**-12
"""What every token's embedding holds in one more dimension: by it the last layer rules out words that are not the
small model's. Too little to matter in the norms.
"""
LOUD, NEVER = 2.0**14, -(2.0**10)
"""Weights of the mark in the last norm and layer: the score of such a word is -4096 over the size of a hidden state."""


def enlarge(large: Any, small: Any) -> None:
    """Give `large` weights so that it says what `small` says: the same scores but for rounding.

    Args:
        large: Qwen2ForCausalLM with random weights and a last layer that is not tied; changed.
        small: Qwen2ForCausalLM with the same rotary base; not changed.

    Raises:
        InvalidInputError: the small model does not fit in.

    """
    _check_fits(large.config, small.config)
    width, share = small.config.hidden_size, small.config.hidden_size / large.config.hidden_size
    own = {name: weight.to(large.device) for name, weight in small.state_dict().items()}
    with torch.no_grad():
        for number, layer in enumerate(large.model.layers):
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.mul_(FAINT)
                linear.weight[: width + 1] = 0
            if number < small.config.num_hidden_layers:
                prefix = f"model.layers.{number}."
                theirs = {name.removeprefix(prefix): weight for name, weight in own.items() if name.startswith(prefix)}
                _place_layer(layer, theirs, _Heads(large.config, small.config), share**0.5)
        _place_ends(large, own, share**0.5)
    for norm in (module for module in large.modules() if hasattr(module, "variance_epsilon")):
        norm.variance_epsilon = small.config.rms_norm_eps * share
    large.config.rms_norm_eps = small.config.rms_norm_eps * share


def _check_fits(large: Any, small: Any) -> None:
    sizes = ("intermediate_size", "num_hidden_layers", "num_key_value_heads", "vocab_size")
    fits = (
        all(getattr(small, name) <= getattr(large, name) for name in sizes)
        and small.hidden_size < large.hidden_size
        and _group(small) <= _group(large)
        and _head_size(large) % _head_size(small) == 0
        and small.rope_parameters["rope_theta"] == large.rope_parameters["rope_theta"]
        and not large.tie_word_embeddings
    )
    if not fits:
        raise InvalidInputError("large", str(large), "larger than the small model in every respect, of the same kind")


def _head_size(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def _group(config: Any) -> int:
    """Query heads of a key head."""
    return int(config.num_attention_heads // config.num_key_value_heads)


class _Heads:
    """Where the small model's rows of the projections are in the large one's."""

    def __init__(self, large: Any, small: Any) -> None:
        size, fine = _head_size(small), _head_size(large)
        half = torch.arange(size // 2) * (fine // size)
        turning, still = torch.cat([half, half + fine // 2]), torch.arange(size)
        heads = torch.arange(small.num_attention_heads)
        queries = heads // _group(small) * _group(large) + heads % _group(small)
        keys = torch.arange(small.num_key_value_heads)
        self.asking = (queries[:, None] * fine + torch.arange(fine)).flatten()
        """All rows of queries of these heads: those that are not the small model's must not add to its scores."""
        self.queries, self.keys, self.values, self.read = (
            (heads[:, None] * fine + place).flatten()
            for heads, place in ((queries, turning), (keys, turning), (keys, still), (queries, still))
        )
        self.stretch = (fine / size) ** 0.5
        """Of queries: attention divides by the root of a head's size."""


def _place_layer(layer: Any, own: dict[str, Tensor], heads: _Heads, factor: float) -> None:
    inner = torch.arange(len(own["mlp.up_proj.weight"]))
    width = len(own["input_layernorm.weight"])
    layer.self_attn.q_proj.weight[heads.asking] = 0
    for name, rows, scale in (
        ("self_attn.q_proj", heads.queries, heads.stretch), ("self_attn.k_proj", heads.keys, 1.0),
        ("self_attn.v_proj", heads.values, 1.0), ("mlp.gate_proj", inner, 1.0), ("mlp.up_proj", inner, 1.0),
    ):  # fmt: skip
        linear = layer.get_submodule(name)
        linear.weight[rows] = 0
        linear.weight[rows, :width] = _like(own[f"{name}.weight"] * scale, linear.weight)
        if linear.bias is not None:
            linear.bias[rows] = _like(own[f"{name}.bias"] * scale, linear.bias)
    for name, columns in (("self_attn.o_proj", heads.read), ("mlp.down_proj", inner)):
        weight = layer.get_submodule(name).weight
        weight[:width, columns] = _like(own[f"{name}.weight"], weight)
    for name in ("input_layernorm", "post_attention_layernorm"):
        weight = layer.get_submodule(name).weight
        weight[:width] = _like(own[f"{name}.weight"] * factor, weight)


def _place_ends(large: Any, own: dict[str, Tensor], factor: float) -> None:
    """Embeddings, the last norm and the last layer, which scores other words by the mark alone."""
    words, width = own["model.embed_tokens.weight"].shape
    embedding, norm, last = large.model.embed_tokens.weight, large.model.norm.weight, large.lm_head.weight
    embedding.zero_()
    embedding[:, width] = MARK
    embedding[:words, :width] = _like(own["model.embed_tokens.weight"], embedding)
    norm[:width] = _like(own["model.norm.weight"] * factor, norm)
    norm[width] = LOUD
    last[:words] = 0
    last[:words, :width] = _like(own["lm_head.weight"], last)
    last[words:, : width + 1] = 0
    last[words:, width] = NEVER


def _like(weight: Tensor, other: Tensor) -> Tensor:
    return weight.to(other.dtype)
