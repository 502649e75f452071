"""Commands to a running engine, executed between two of its steps: statistics, version, clear, commit, load, pause.

The worker's side; how a command gets there is the host's business (vLLM: `rolltree.vllm.control`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.serving.core import ServingCore

COMMANDS: dict[str, Callable[..., Any]] = {
    "stats": ServingCore.stats,
    "cost": ServingCore.cost_seconds,
    "set_version": lambda core, version: core.drafter.cache.set_version(version),
    "clear": ServingCore.forget,
    "commit": ServingCore.commit,
    "load": ServingCore.load,
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
