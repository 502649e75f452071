"""Control of a running engine: statistics, policy version, clear, commit, load, pause and resume.

Both sides of it: `Control` and `AsyncControl` on the caller's side speak `collective_rpc` to the worker's `rolltree`
method (see `compat`), whose `run` executes a command of `COMMANDS` on the proposer, between two engine steps. Nothing
of it needs a worker extension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rolltree.errors import InvalidInputError, MissingDependencyError
from rolltree.serving.figures import with_ratios
from rolltree.serving.load import load_rollouts

Stats = dict[str, float]


class Control:
    """Control of a `vllm.LLM` (or `LLMEngine`) that drafts with rolltree. With data parallelism: of all replicas.

    Args:
        engine: anything with a synchronous `collective_rpc`.

    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def _call(self, command: str, *arguments: object) -> list[Any]:
        return _answers(self._engine.collective_rpc("rolltree", args=(command, *arguments)))

    def stats(self) -> Stats:
        """Return the sums since the engine started, and their ratios."""
        return _sum(self._call("stats"))

    def set_version(self, version: int) -> None:
        """Announce a policy update; text of older versions counts less from now on."""
        self._call("set_version", version)

    def clear(self) -> None:
        """Forget everything. Running requests go on; sums go on from where they are."""
        self._call("clear")

    def commit(self) -> None:
        """Close finished requests now, not with the next step. Call it between generations."""
        self._call("commit")

    def load(self, path: str | Path) -> int:
        """Load rollouts from a store or from JSON lines (see `load_rollouts`); return how many."""
        return int(max(self._call("load", str(path))))

    def pause(self) -> None:
        """Draft no more; text still enters the trees."""
        self._call("pause")

    def resume(self) -> None:
        """Draft again."""
        self._call("resume")


class AsyncControl:
    """`Control` of an `AsyncLLM`; see there for the commands.

    With data parallelism commands reach all replicas, but vLLM hands back the first one's answer alone: `stats` and
    `load` then speak of that one.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def _call(self, command: str, *arguments: object) -> list[Any]:
        return _answers(await self._engine.collective_rpc("rolltree", args=(command, *arguments)))

    async def stats(self) -> Stats:
        """Return the sums since the engine started, and their ratios."""
        return _sum(await self._call("stats"))

    async def set_version(self, version: int) -> None:
        """Announce a policy update."""
        await self._call("set_version", version)

    async def clear(self) -> None:
        """Forget everything."""
        await self._call("clear")

    async def commit(self) -> None:
        """Close finished requests now."""
        await self._call("commit")

    async def load(self, path: str | Path) -> int:
        """Load rollouts; return how many."""
        return int(max(await self._call("load", str(path))))

    async def pause(self) -> None:
        """Draft no more."""
        await self._call("pause")

    async def resume(self) -> None:
        """Draft again."""
        await self._call("resume")


def run(proposer: Any, command: str, *arguments: Any) -> Any:
    """Execute a command in the worker."""
    if command not in COMMANDS:
        raise InvalidInputError("collective_rpc rolltree", command, f"one of {', '.join(COMMANDS)}")
    return COMMANDS[command](proposer, *arguments)


def _pause(proposer: Any) -> None:
    proposer.paused = True


def _resume(proposer: Any) -> None:
    proposer.resume()


def _cost(proposer: Any) -> dict[str, float] | None:
    """The step-cost model in use, seconds by name; None while nothing was observed, or without a budget."""
    if proposer.observer is None:
        return None if proposer.drafter.cost is None else asdict(proposer.drafter.cost)
    return asdict(proposer.observer.freeze()) if proposer.observer.observations else None


COMMANDS: dict[str, Callable[..., Any]] = {
    "stats": lambda proposer: proposer.stats(),
    "cost": _cost,
    "set_version": lambda proposer, version: proposer.drafter.cache.set_version(version),
    "clear": lambda proposer: proposer.forget(),
    "commit": lambda proposer: proposer.commit(),
    "load": lambda proposer, path: load_rollouts(proposer.drafter.cache, path),
    "pause": _pause,
    "resume": _resume,
}


def _answers(replies: list[Any]) -> list[Any]:
    """Drop the ranks that do not draft; every command answers something else than None on the one that does."""
    answers = [reply["answer"] for reply in replies if reply is not None]
    if not answers:
        fix = "Start it with speculative_config={'method': 'custom_class', 'model': 'rolltree.vllm.Proposer', ...}."
        raise MissingDependencyError(f"This engine does not draft with rolltree. {fix}")
    return answers


def _sum(parts: list[Stats]) -> Stats:
    """Add up the sums of all replicas; ratios are taken last."""
    total = {name: sum(part[name] for part in parts) for name in parts[0]}
    return with_ratios(total)
