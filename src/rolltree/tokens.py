"""Token ids as the core wants them: int32, one-dimensional, contiguous, 0..2^31-1. Anything else is a typed error."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from rolltree.errors import InvalidInputError
from rolltree.types import Int32Array, TokenIds

_MAX = 2**31 - 1


_Integer = TypeVar("_Integer", np.int32, np.int64)


def as_integers(values: ArrayLike, dtype: type[_Integer], name: str) -> npt.NDArray[_Integer]:
    """Return whole numbers as a contiguous array [n] of `dtype`, without copying when they are that already.

    Raises:
        InvalidInputError: not one-dimensional, not whole numbers, or beyond what `dtype` holds.

    """
    if type(values) is np.ndarray and values.dtype == dtype and values.ndim == 1 and values.flags.c_contiguous:
        return values
    array = np.asarray(values)
    if array.ndim != 1:
        raise InvalidInputError(f"{name}.ndim", array.ndim, "1", "Pass one flat list of whole numbers.")
    if array.size == 0:
        return np.zeros(0, dtype)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name}.dtype", str(array.dtype), "an integer type")
    low, high = int(array.min()), int(array.max())
    least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if low < least or high > most:
        raise InvalidInputError(name, low if low < least else high, f"whole numbers from {least} to {most}")
    return np.ascontiguousarray(array, dtype=dtype)


def as_tokens(tokens: TokenIds, name: str = "tokens") -> Int32Array:
    """Return `tokens` as int32 [n], without copying when they are that already.

    Raises:
        InvalidInputError: not one-dimensional, not integers, negative, or beyond 2^31 - 1.

    """
    array = np.asarray(tokens)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int32)
    if array.ndim != 1:
        raise InvalidInputError(f"{name}.ndim", array.ndim, "1", "Pass one flat list of token ids.")
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name}.dtype", str(array.dtype), "an integer type", "Token ids are whole numbers.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > _MAX:
        bad = low if low < 0 else high
        where = int(np.flatnonzero(array == bad)[0])
        raise InvalidInputError(f"{name}[{where}]", bad, f"a token id from 0 to {_MAX}")
    return np.ascontiguousarray(array, dtype=np.int32)
