"""Control of a running vLLM: statistics, policy version, clear, commit, load, pause and resume.

The caller's side: speaks `collective_rpc` to the worker's `rolltree` method (see `compat`), which executes a command of
`serving.commands` between two engine steps. Nothing of it needs a worker extension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rolltree.errors import MissingDependencyError
from rolltree.metrics import DERIVED, add_up, with_ratios

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
        """Close finished requests now, not with the next step; with a store, they are safe in it afterwards.

        Call it between generations.
        """
        self._call("commit")

    def load(self, path: str | Path) -> int:
        """Load rollouts from a store or from JSON lines (see `load_rollouts`); return how many."""
        return int(max(self._call("load", str(path))))

    def add(self, rollouts: Iterable[Mapping[str, Any]]) -> int:
        """Add rollouts that other engines finished (see `ServingCore.add`); return how many."""
        return int(max(self._call("add", plain(rollouts))))

    def expect(self, prompts: Iterable[Mapping[str, Any]]) -> int:
        """Say which prompts are coming (see `ServingCore.expect`), so that their trees come back from the store."""
        return int(max(self._call("expect", plain(prompts))))

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

    async def add(self, rollouts: Iterable[Mapping[str, Any]]) -> int:
        """Add rollouts that other engines finished; return how many."""
        return int(max(await self._call("add", plain(rollouts))))

    async def expect(self, prompts: Iterable[Mapping[str, Any]]) -> int:
        """Say which prompts are coming."""
        return int(max(await self._call("expect", plain(prompts))))

    async def pause(self) -> None:
        """Draft no more."""
        await self._call("pause")

    async def resume(self) -> None:
        """Draft again."""
        await self._call("resume")


def plain(rollouts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rollouts or prompts as what may travel to the engine's process: arrays become lists."""
    return [
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in fields.items()}
        for fields in rollouts
    ]


def _answers(replies: list[Any]) -> list[Any]:
    """Drop the ranks that do not draft; every command answers something else than None on the one that does."""
    answers = [reply["answer"] for reply in replies if reply is not None]
    if not answers:
        fix = "Start it with speculative_config={'method': 'custom_class', 'model': 'rolltree.vllm.Proposer', ...}."
        raise MissingDependencyError(f"This engine does not draft with rolltree. {fix}")
    return answers


def _sum(parts: list[Stats]) -> Stats:
    """Add up the sums of all replicas; ratios are taken last."""
    return with_ratios(add_up(*({name: part[name] for name in part if name not in DERIVED} for part in parts)))
