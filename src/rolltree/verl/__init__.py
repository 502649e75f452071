"""rolltree inside verl, unmodified: two lines of verl's configuration turn it on.

    trainer.v1.sampler.custom_sampler.path=pkg://rolltree.verl
    trainer.v1.sampler.custom_sampler.name=sampler

Importing this package loads neither verl nor Ray; its names are resolved when first used. `rolltree verl-config` prints
the lines for an algorithm, docs/verl.md explains them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rolltree.verl.doctor import doctor_lines
    from rolltree.verl.hook import sampler
    from rolltree.verl.lines import config_lines
    from rolltree.verl.manager import AgentLoopManager
    from rolltree.verl.options import VerlOptions
    from rolltree.verl.router import PromptRouter

_HOME = {
    "AgentLoopManager": "manager",
    "PromptRouter": "router",
    "VerlOptions": "options",
    "config_lines": "lines",
    "doctor_lines": "doctor",
    "sampler": "hook",
}

__all__ = ["AgentLoopManager", "PromptRouter", "VerlOptions", "config_lines", "doctor_lines", "sampler"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rolltree.verl' has no attribute {name!r}")
    return getattr(import_module(f"rolltree.verl.{_HOME[name]}"), name)
