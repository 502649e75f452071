"""A user's own model and prompts as a workload for `bench engine` with the built-in engine."""

from __future__ import annotations

from typing import Any

from rolltree.bench.engine import Workload
from rolltree.bench.prompts import Prompts
from rolltree.errors import InvalidInputError


def own_workload(*, model: str, prompts: Prompts, samples: int, temperature: float, max_tokens: int) -> Workload:
    """Load a causal language model of Hugging Face, in float32; it ends rollouts as its generation settings say.

    Raises:
        InvalidInputError: there is no such model, or a prompt has ids that it does not know.

    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    except (OSError, ValueError) as error:
        raise InvalidInputError("--model", model, "a causal language model of Hugging Face", str(error)) from error
    loaded.eval()
    vocab = loaded.get_input_embeddings().num_embeddings
    for tokens, place in zip(prompts.tokens, prompts.places, strict=True):
        if max(tokens) >= vocab:
            raise InvalidInputError(place, max(tokens), f"ids below {vocab}", "These are ids of another tokenizer.")
    ends, pad = loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id
    stops = tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)
    return Workload(
        name=model, model=loaded, prompts=prompts.tokens, samples=samples, max_tokens=max_tokens,
        stop_token_ids=stops, pad_token_id=int(pad or 0), temperature=temperature,
    )  # fmt: skip
