"""What callers hand over, checked: token ids, keys, whole numbers. Anything that cannot be taken is a typed error.

Token ids become int32, one-dimensional, contiguous, 0..2^31-1; keys plain strings; numbers plain integers of 64 bits.

A prompt has one name everywhere: `prompt_key`, over `prompt_digest`, which is also what the store's file holds.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from rolltree.errors import InvalidInputError
from rolltree.types import Int32Array, TokenIds

_MAX = 2**31 - 1
_LONGEST_KEY = 1 << 20  # bytes of UTF-8


_Integer = TypeVar("_Integer", np.int32, np.int64)


def as_integers(values: ArrayLike, dtype: type[_Integer], name: str) -> npt.NDArray[_Integer]:
    """Return whole numbers as a contiguous array [n] of `dtype`, without copying when they are that already.

    Raises:
        InvalidInputError: not one-dimensional, not whole numbers, or beyond what `dtype` holds.

    """
    if type(values) is np.ndarray and values.dtype == dtype and values.ndim == 1 and values.flags.c_contiguous:
        return values
    array, least, most = _flat(values, name), int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if array.size and (bad := _outside(array, least, most)) is not None:
        raise InvalidInputError(name, int(array[bad]), f"whole numbers from {least} to {most}")
    return np.ascontiguousarray(array, dtype=dtype)


def as_tokens(tokens: TokenIds, name: str = "tokens") -> Int32Array:
    """Return `tokens` as int32 [n], without copying when they are that already.

    Raises:
        InvalidInputError: not one-dimensional, not integers, negative, or beyond 2^31 - 1.

    """
    array = _flat(tokens, name)
    if array.size and (bad := _outside(array, 0, _MAX)) is not None:
        raise InvalidInputError(f"{name}[{bad}]", int(array[bad]), f"a token id from 0 to {_MAX}")
    return np.ascontiguousarray(array, dtype=np.int32)


def _flat(values: ArrayLike, name: str) -> npt.NDArray[np.integer]:
    """One-dimensional whole numbers of any integer type, as they are."""
    try:
        array = np.asarray(values)
    except Exception as error:  # rows of several lengths, a tensor on a GPU
        raise InvalidInputError(name, values, "one flat list of whole numbers", str(error)) from error
    if array.ndim != 1:
        raise InvalidInputError(f"{name}.ndim", array.ndim, "1", "Pass one flat list of whole numbers.")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name}.dtype", str(array.dtype), "an integer type", "Pass whole numbers.")
    return array


def _outside(array: npt.NDArray[np.integer], low: int, high: int) -> int | None:
    """Where the least or the greatest stands that is not within the bounds; None where all are."""
    least, greatest = int(array.argmin()), int(array.argmax())
    if int(array[least]) < low:
        return least
    return greatest if int(array[greatest]) > high else None


def prompt_digest(prompt: Int32Array) -> bytes:
    """16 bytes that stand for token ids, int32 [n]: part of the store's file format, so they never change."""
    return hashlib.blake2b(prompt.astype("<i4", copy=False).tobytes(), digest_size=16).digest()


def prompt_key(token_ids: TokenIds, key: str | None = None, media: Sequence[tuple[int, str]] = ()) -> str:
    """Name a prompt: the same in every process, on every replica, and in every epoch.

    Args:
        token_ids: the prompt, [n].
        key: the user's id for it, which is then the name whatever the tokens are.
        media: pictures and the like in the prompt: the place of the first token that stands for each, and the hash of
            its content. The same tokens stand for every picture, so the tokens alone would give different prompts one
            name. What comes behind the prompt belongs to later turns.

    Raises:
        InvalidInputError: bad token ids.

    """
    if key is not None:
        return f"user:{key}"
    tokens = as_tokens(token_ids, "prompt")
    digest = prompt_digest(tokens)
    inside = [f"{place}:{content}" for place, content in media if place < len(tokens)]
    if not inside:
        return digest.hex()
    text = "\0".join(inside).encode(errors="surrogatepass")
    return f"media:{hashlib.blake2b(digest + text, digest_size=16).hexdigest()}"


def as_key(key: object, name: str = "key") -> str | None:
    """Return the user's id of a prompt as a plain string; None stays None.

    Raises:
        InvalidInputError: another type, half of a surrogate pair in it, or longer than 1 MiB.

    """
    if key is None:
        return None
    if not isinstance(key, str):
        raise InvalidInputError(name, key, "a string, or None", "Pass str(...) of it.")
    text = str.__str__(key)  # of a subclass, such as numpy.str_ or an enumeration, the text itself
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(name, text, "text that UTF-8 can hold", str(error)) from error
    if size > _LONGEST_KEY:
        raise InvalidInputError(name, text[:40] + "...", f"at most {_LONGEST_KEY} bytes", "Pass a hash of it.")
    return text


def as_integer(value: object, name: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """Return a whole number from `low` to `high` as a plain int; numpy's integers and 3.0 are taken.

    Raises:
        InvalidInputError: None, a bool, text, a fraction, NaN, or a number out of range.

    """
    number = _whole(value)
    if number is None or not low <= number <= high:
        raise InvalidInputError(name, value, f"a whole number from {low} to {high}")
    return number


def as_version(version: object, name: str = "version") -> int:
    """Return a policy version as a plain int; errors as `as_integer`."""
    return as_integer(version, name)


def check_whole(name: str, value: object, low: int, high: int, fix: str = "") -> None:
    """Check a setting that is a whole number: no fraction, text or truth value, and no number that only looks like one.

    Raises:
        InvalidInputError: it is none, or not from `low` to `high`.

    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInputError(name, value, f"a whole number from {low} to {high}", fix)


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Check a setting that is a number from `low` to `high`; errors as `check_whole`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidInputError(name, value, f"a number from {low:g} to {high:g}")


def _whole(value: object) -> int | None:
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating):
        return int(value) if float(value).is_integer() else None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except Exception:  # a TypeError, or what the object's own method raises
        return None
