"""Checks a request before it gets near a row: what is wrong with a prompt is the request's error, not the
batch's.
"""

from __future__ import annotations

import numpy as np

from rolltree.engine.request import Request
from rolltree.errors import RequestError
from rolltree.types import Int32Array


def checked_prompt(request: Request, *, vocab: int, max_length: int) -> Int32Array:
    """The prompt as an array; raise RequestError if the engine cannot run it."""
    prompt = np.asarray(request.prompt_token_ids)
    if prompt.ndim != 1 or not (len(prompt) == 0 or np.issubdtype(prompt.dtype, np.integer)):
        raise RequestError(
            f"prompt of type {prompt.dtype} and shape {prompt.shape}: must be a list of integer token ids"
        )
    if len(prompt) == 0:
        raise RequestError("empty prompt: a request needs at least one token (most models have a start token)")
    if len(prompt) >= max_length:
        raise RequestError(
            f"prompt of {len(prompt)} tokens leaves no room in engine.max_length = {max_length} (prompt and output)"
        )
    low, high = int(prompt.min()), int(prompt.max())
    if low < 0 or high >= vocab:
        bad = low if low < 0 else high
        raise RequestError(f"prompt token {bad} is outside the model's vocabulary of {vocab}: wrong tokenizer?")
    return np.ascontiguousarray(prompt, np.int32)
