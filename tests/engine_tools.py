"""Tiny random models and a drafter that knows the answer, for the engine's tests and for timing it."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rolltree.types import DraftBatch

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # large enough that greedy text does not fall into one repeated token
}


def tiny_model(family: str = "qwen2", vocab: int = 23, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **_SIZES)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab, head_dim=16, **_SIZES)).eval()
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab, **_SIZES)).eval()


def prompts(count: int, vocab: int = 23, longest: int = 20, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


class Oracle:
    """Drafts the known continuation of each (prompt, seed); each token is wrong with probability `corrupt`.

    With `tree`, the continuation is the spine of a tree that has wrong branches before and beside it.
    """

    def __init__(
        self, known: dict[tuple[tuple[int, ...], int], list[int]], *, vocab: int, corrupt: float = 0.0,
        tree: bool = False, ragged: bool = True, width: int = 8, seed: int = 0,
    ) -> None:  # fmt: skip
        self.known, self.vocab, self.corrupt, self.tree, self.width = known, vocab, corrupt, tree, width
        self.ragged = ragged
        self.rng = np.random.default_rng(seed)
        self.live: dict[int, list] = {}
        self.next = 0
        self.closed: list[tuple[list[int], bool]] = []

    def open(self, prompt, *, key=None, seed=None, coupled=False) -> int:
        self.next += 1
        self.live[self.next] = [self.known.get((tuple(int(t) for t in prompt), seed), []), 0, []]
        return self.next

    def draft(self, handles, limits) -> DraftBatch:
        rows = [self._row(self.live[int(h)], int(k)) for h, k in zip(handles, limits, strict=True)]
        width = max(len(r[0]) for r in rows)
        tokens, parents = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
        lengths = np.array([len(r[0]) for r in rows], np.int32)
        for b, (t, p) in enumerate(rows):
            tokens[b, : len(t)], parents[b, : len(t)] = t, p
        return DraftBatch(
            tokens=tokens, parents=parents, lengths=lengths,
            survival=np.ones((len(rows), width), np.float32), is_chain=not self.tree,
        )  # fmt: skip

    def _row(self, state, limit: int) -> tuple[list[int], list[int]]:
        known, at, _ = state
        limit = min(limit, self.width)
        if self.ragged:
            limit = int(self.rng.integers(0, limit + 1))
        spine = [self._maybe_wrong(t) for t in known[at : at + limit]]
        if not self.tree:
            return spine, list(range(-1, len(spine) - 1))
        tokens: list[int] = []
        parents: list[int] = []
        tip = -1
        for token in spine:
            wrong = int((token + 1 + self.rng.integers(0, self.vocab - 1)) % self.vocab)
            branches = [wrong, token] if self.rng.random() < 0.5 else [token]
            for t in branches:
                tokens.append(t)
                parents.append(tip)
            if self.rng.random() < 0.3 and len(branches) == 2:  # a child of the wrong branch, after the right one
                tokens.append(token)
                parents.append(len(tokens) - 3)
                tip = len(tokens) - 2
            else:
                tip = len(tokens) - 1
        return tokens[:limit], parents[:limit]

    def _maybe_wrong(self, token: int) -> int:
        return int(self.rng.integers(0, self.vocab)) if self.rng.random() < self.corrupt else token

    def advance(self, handles, tokens, offsets) -> None:
        assert len(offsets) == len(handles) + 1
        for b, h in enumerate(handles):
            new = tokens[offsets[b] : offsets[b + 1]].tolist()
            self.live[int(h)][1] += len(new)
            self.live[int(h)][2] += new

    def close(self, handle: int, *, keep: bool = True) -> None:
        self.closed.append((self.live.pop(handle)[2], keep))
