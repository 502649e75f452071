"""How many draft tokens of a request vLLM verifies in one step; loads no vLLM, so that trainers can check early."""

from __future__ import annotations

from rolltree.errors import InvalidInputError

MAX_DRAFT = 128
"""vLLM's own limit (`MAX_SPEC_LEN` of `v1/sample/rejection_sampler.py`): one token more ends the engine."""


def check_width(name: str, value: object, largest: int = MAX_DRAFT) -> None:
    """Check the number of draft tokens a request and step that a user asks of vLLM.

    Raises:
        InvalidInputError: not a whole number from 1 to `largest`.

    """
    if type(value) is not int or not 1 <= value <= largest:
        raise InvalidInputError(name, value, f"1 to {largest}", "vLLM verifies no longer drafts.")
