"""Commands to a running engine, between two of its steps: statistics, version, clear, commit, load, add, expect, pause.

The worker's side; how a command gets there is the host's business (vLLM: `rolltree.vllm.control`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.serving.core import ServingCore
from rolltree.serving.versions import Source
from rolltree.tokens import as_version


def _cost(core: ServingCore) -> dict[str, float] | None:
    """The step-cost model in use, seconds by name; None while nothing was observed, or without a budget."""
    if core.observer is None:
        return None if core.drafter.cost is None else asdict(core.drafter.cost)
    return asdict(core.observer.freeze()) if core.observer.observations else None


def _set_version(core: ServingCore, version: int) -> None:
    """Announce a policy update; from now on no version is inferred."""
    version = as_version(version)
    core.drafter.cache.set_version(core.book.versions.take(version, Source.SAID) or version)


COMMANDS: dict[str, Callable[..., Any]] = {
    "stats": ServingCore.stats,
    "cost": _cost,
    "set_version": _set_version,
    "updated": lambda core: core.book.versions.updated(),
    "clear": ServingCore.forget,
    "commit": ServingCore.commit,
    "load": ServingCore.load,
    "add": ServingCore.add,
    "expect": ServingCore.expect,
    "pause": ServingCore.pause,
    "resume": ServingCore.resume,
}


def run(core: ServingCore, command: str, *arguments: Any) -> Any:
    """Execute a command; return its answer, None where it has none.

    Raises:
        InvalidInputError: no such command, or an argument that it refuses.

    """
    if command not in COMMANDS:
        raise InvalidInputError("rolltree command", command, f"one of {', '.join(COMMANDS)}")
    return COMMANDS[command](core, *arguments)
