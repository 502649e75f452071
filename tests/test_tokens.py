"""Checked values: token ids, whole numbers, and the one name of a prompt."""

from __future__ import annotations

import numpy as np
import pytest

from rolltree.errors import InvalidInputError
from rolltree.tokens import as_tokens, prompt_digest, prompt_key


def test_the_name_of_a_prompt_never_changes() -> None:
    """Stores hold the digest, and processes name prompts to one another: neither may differ between versions."""
    assert prompt_key([1, 2, 3]) == "b30a3c159d7e8193559a42a84f1fcae1" == prompt_digest(as_tokens([1, 2, 3])).hex()


@pytest.mark.parametrize("prompt", [(1, 2, 3), np.array([1, 2, 3], np.int64), np.array([1, 2, 3], np.uint16)])
def test_a_prompt_has_one_name_whatever_holds_it(prompt: object) -> None:
    """Lists, tuples and arrays of any integer type are the same prompt."""
    assert prompt_key(prompt) == prompt_key([1, 2, 3])  # type: ignore[arg-type]


def test_the_users_key_names_a_prompt_whatever_its_tokens_are() -> None:
    """A key is the name; without one the tokens are, and no key can be mistaken for them."""
    assert prompt_key([1], "a") == prompt_key([2], "a") != prompt_key([1], "b")
    assert prompt_key([1], prompt_key([1])) != prompt_key([1])


def test_pictures_are_a_part_of_the_name() -> None:
    """The same tokens stand for every picture; those of later turns do not count."""
    first, second = ((1, "cat"),), ((1, "dog"),)
    assert len({prompt_key([5, 9], media=media) for media in ((), first, second, (*first, *second))}) == 4
    assert prompt_key([5], media=first) == prompt_key([5])


def test_a_prompt_that_is_none_has_no_name() -> None:
    """What is no prompt is a typed error, not a name."""
    with pytest.raises(InvalidInputError, match="prompt"):
        prompt_key([[1], [2]])  # type: ignore[list-item]
