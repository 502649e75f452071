"""Reads from a TRL trainer what a rollout needs: token ids of prompts, sampling settings, end tokens, seeds.

Changes nothing. A setting of the trainer that the engine cannot honour is an error here, never silently
dropped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from rolltree.budget import CostModel
from rolltree.cache import RolloutCache
from rolltree.config import DraftConfig
from rolltree.errors import InvalidInputError
from rolltree.sampling import SamplingParams
from rolltree.store import RolloutStore

UNSUPPORTED_FIX = "Leave it out, or train without rolltree's rollout_func."
WITH_VLLM = (
    "Generate by vLLM: args.use_vllm=True, no rollout_func, ROLLTREE_DRAFT=16 in the environment before the trainer is "
    "made, and rolltree.trl.attach(trainer) after it (docs/trl.md)."
)
"""What to use where the built-in engine cannot."""


def check_arguments(
    *, slots: object, seed: object, cost: object, draft: object, cache: object, store: object, run_dir: object
) -> None:
    """Raise InvalidInputError for an argument of `RolloutFunction` that would fail only when the training runs."""
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots < 2**31:
        raise InvalidInputError("slots", slots, "an integer from 1 to 2**31 - 1")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InvalidInputError("seed", seed, "None or an integer")
    if not (cost is None or cost == "measure" or isinstance(cost, CostModel)):
        raise InvalidInputError("cost", cost, '"measure", None or a CostModel')
    kinds: dict[str, tuple[object, tuple[type, ...]]] = {
        "draft": (draft, (DraftConfig,)),
        "cache": (cache, (RolloutCache,)),
        "store": (store, (RolloutStore,)),
        "run_dir": (run_dir, (str, os.PathLike)),
    }
    for name, (value, allowed) in kinds.items():
        if value is not None and not isinstance(value, allowed):
            raise InvalidInputError(name, value, "None or " + " or ".join(kind.__name__ for kind in allowed))


def check_trainer(trainer: Any) -> None:
    """Raise InvalidInputError for a trainer whose rollouts this adapter cannot make."""
    args = trainer.args
    refused = {
        "use_vllm": (getattr(args, "use_vllm", False), False),
        "use_transformers_continuous_batching": (
            getattr(args, "use_transformers_continuous_batching", False),
            False,
        ),
        "repetition_penalty": (getattr(args, "repetition_penalty", 1.0), 1.0),
        "generation_kwargs": (getattr(args, "generation_kwargs", None) or None, None),
    }
    for name, (value, allowed) in refused.items():
        if value != allowed:
            fix = WITH_VLLM if name == "use_vllm" else UNSUPPORTED_FIX
            raise InvalidInputError(f"args.{name}", value, f"{allowed!r} with rolltree's rollout_func", fix)
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        if getattr(trainer, name, False):
            raise InvalidInputError(f"trainer.{name}", True, "False: the weights must be whole", WITH_VLLM)
    if getattr(trainer, "tools", None):
        raise InvalidInputError("trainer.tools", "a list", "empty: the tool loop does not use rollout_func", WITH_VLLM)


def prompt_token_ids(trainer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Tokenise as the trainer would: chat template for lists of messages, plain text for strings."""
    tokenizer = trainer.processing_class
    if isinstance(prompts[0], str):
        ids = tokenizer(text=list(prompts))["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            conversation=list(prompts),
            chat_template=getattr(trainer, "chat_template", None),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **(getattr(trainer, "chat_template_kwargs", None) or {}),
        )["input_ids"]
    return [list(map(int, row)) for row in ids]


def end_token_ids(trainer: Any) -> tuple[int, ...]:
    """Every token that ends a completion for the trainer; the tokenizer's where the trainer names none."""
    ids = getattr(trainer, "eos_token_ids", None)
    return tuple(ids if ids is not None else [trainer.processing_class.eos_token_id])


def sampling_params(trainer: Any, seed: int) -> SamplingParams:
    """The trainer's sampling settings for one completion with its own seed."""
    args = trainer.args
    return SamplingParams(
        temperature=args.temperature,
        top_k=args.top_k or 0,
        top_p=args.top_p,
        min_p=args.min_p or 0.0,
        max_tokens=args.max_completion_length,
        stop_token_ids=end_token_ids(trainer),
        seed=seed,
    )


def request_seed(run_seed: int, training: bool, step: int, call: int, process: int, sample: int) -> int:
    """64-bit seed, a hash of where in the run the completion belongs.

    `call` counts the generation calls made at the same global step in the same mode, `sample` the
    completions of the call. Nothing about drafts or the cache enters, so a run without rolltree's drafts
    draws the same seeds.
    """
    place = ":".join(map(str, (run_seed, int(training), step, call, process, sample)))
    return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little")
