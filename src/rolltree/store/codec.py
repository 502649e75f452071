"""Arrays as blobs: one byte of item width, then zlib, for tokens with the prompt as dictionary.

zlib carries a checksum, so a damaged blob is found when it is read. Measured on RL rollouts (docs/store.md): 0.6 to
0.75 bytes a token where int32 takes 4. Pure functions; the file is `schema`'s concern.
"""

from __future__ import annotations

import zlib

import numpy as np

from rolltree.types import Float32Array, Int32Array

LEVEL = 6  # 5 % smaller than level 1 at the same speed: rollouts are short
DICTIONARY = 32768  # bytes that deflate can look back
_NARROW = 1 << 16


def pack_tokens(tokens: Int32Array, prompt: Int32Array | None = None) -> bytes:
    """Blob of token ids; `prompt` is the dictionary, which `unpack_tokens` needs again."""
    width = 2 if not len(tokens) or int(tokens.max()) < _NARROW else 4
    squeeze = zlib.compressobj(LEVEL, zdict=_dictionary(prompt, width))
    return bytes([width]) + squeeze.compress(tokens.astype(f"<i{width}", copy=False).tobytes()) + squeeze.flush()


def unpack_tokens(blob: bytes, prompt: Int32Array | None = None) -> Int32Array:
    """Token ids, int32 [n].

    Raises:
        ValueError: the blob is damaged, or another prompt made it.

    """
    tokens, rest = unpack_and_rest(blob, prompt)
    if rest:
        raise ValueError("damaged blob: something lies behind it")
    return tokens


def unpack_and_rest(blob: bytes, prompt: Int32Array | None = None) -> tuple[Int32Array, bytes]:
    """Token ids, and what was put behind the blob (a checksum); errors as `unpack_tokens`."""
    width = blob[0] if blob else 0
    if width not in (2, 4):
        raise ValueError(f"item width {width} in the blob, must be 2 or 4")
    kind = "<u2" if width == 2 else "<i4"
    raw, rest = _inflate(blob[1:], _dictionary(prompt, width))
    return np.frombuffer(raw, kind).astype(np.int32), rest


def pack_floats(values: Float32Array) -> bytes:
    """Blob of float32 values, exact; bytes of the same weight side by side, which zlib likes."""
    return zlib.compress(values.astype("<f4").view(np.uint8).reshape(-1, 4).T.tobytes(), LEVEL)


def unpack_floats(blob: bytes) -> Float32Array:
    """Values, float32 [n]; ValueError for a damaged blob."""
    raw, rest = _inflate(blob, b"")
    if rest:
        raise ValueError("damaged blob: something lies behind it")
    planes = np.frombuffer(raw, np.uint8).reshape(4, -1)
    return np.ascontiguousarray(planes.T).view("<f4").ravel().astype(np.float32, copy=False)


def _dictionary(prompt: Int32Array | None, width: int) -> bytes:
    return b"" if prompt is None else prompt[-DICTIONARY // width :].astype(f"<i{width}").tobytes()


def _inflate(data: bytes, dictionary: bytes) -> tuple[bytes, bytes]:
    machine = zlib.decompressobj(zdict=dictionary)
    try:
        raw = machine.decompress(data)
    except zlib.error as error:
        raise ValueError(f"damaged blob: {error}") from error
    if not machine.eof:
        raise ValueError("damaged blob: it ends early")
    return raw, machine.unused_data
