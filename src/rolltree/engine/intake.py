"""Checks a request before it gets near a row.

What is no request at all (a prompt that is no flat list of integers) is the caller's mistake and raised before
anything is queued; a prompt that this model cannot run (too long, of another vocabulary) is the request's error, not
the batch's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rolltree.engine.request import Request
from rolltree.errors import InvalidInputError, RequestError
from rolltree.sampling import SamplingParams
from rolltree.tokens import as_key
from rolltree.types import Int32Array

Integers = npt.NDArray[np.integer]


def well_formed(request: Request, name: str = "request") -> Integers:
    """Return the prompt as an array; raise InvalidInputError, which calls the request `name`, if there is none."""
    if not isinstance(request, Request):
        raise InvalidInputError(name, request, "a rolltree.Request", "Wrap the prompt: Request(token_ids).")
    if not isinstance(request.sampling, SamplingParams):
        raise InvalidInputError(f"{name}.sampling", request.sampling, "a rolltree.SamplingParams")
    as_key(request.key, f"{name}.key")
    return _token_array(request.prompt_token_ids, f"{name}.prompt_token_ids")


def _token_array(ids: object, name: str) -> Integers:
    allowed, fix = "a flat list of integer token ids", "Tokenise the prompt first, one list for each request."
    try:
        prompt = np.asarray(ids)
    except Exception as error:  # numpy asks the object, which may raise anything
        raise InvalidInputError(name, ids, allowed, fix) from error
    if prompt.ndim != 1 or not (len(prompt) == 0 or np.issubdtype(prompt.dtype, np.integer)):
        raise InvalidInputError(name, ids, allowed, fix)
    return prompt


def runnable(prompt: Integers, *, vocab: int, max_length: int) -> Int32Array:
    """The prompt as the engine takes it; raise RequestError if it cannot run it."""
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
