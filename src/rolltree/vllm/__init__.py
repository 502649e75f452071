"""rolltree inside vLLM, unmodified: `speculative_config={"method": "custom_class", "model": "rolltree.vllm.Proposer"}`.

Importing this package loads neither vLLM nor torch; `Proposer` and `Control` are resolved when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rolltree.vllm.control import AsyncControl, Control
    from rolltree.vllm.proposer import Proposer

__all__ = ["AsyncControl", "Control", "Proposer"]

_HOME = {
    "AsyncControl": "rolltree.vllm.control",
    "Control": "rolltree.vllm.control",
    "Proposer": "rolltree.vllm.proposer",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rolltree.vllm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
