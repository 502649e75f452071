"""What a prompt is called in the file."""

from __future__ import annotations

import hashlib

from rolltree.types import Int32Array


def digest_of(prompt: Int32Array) -> bytes:
    """16 bytes that stand for the prompt's tokens."""
    return hashlib.blake2b(prompt.astype("<i4", copy=False).tobytes(), digest_size=16).digest()
