"""Which tree belongs to which prompt, and which prompts leave when memory is short.

Keys are the prompt's own tokens (hashed; the tree holds the prompt, so a collision is detected) or the user's id. Knows
no sessions beyond how many are live in a tree. What the store still knows of a prompt comes by `rebuilding`. Not
thread-safe: the cache's lock guards it.

Invariant: a prompt with live sessions is never evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolltree._native import Forest, History
from rolltree.rebuilding import Rebuilds, Wanted
from rolltree.tokens import prompt_key
from rolltree.types import Int32Array

if TYPE_CHECKING:
    from rolltree.store import StoredRollout

_FULL = 0.95
"""Part of the own trees' bytes above which something must go: what is being rebuilt takes memory until it is done."""


@dataclass(slots=True)
class PromptTree:
    """A prompt's tree."""

    key: str
    tree: int
    live: int = 0
    """Sessions that are open in it."""


class PromptTable:
    """Prompts with a tree, least recently used first.

    Args:
        forest: where the trees are.
        own_bytes: what all prompts' own trees may take.
        rebuilds: makes what gives a new tree what the store knows of its prompt.

    """

    def __init__(self, forest: Forest, *, own_bytes: int, rebuilds: Callable[..., Rebuilds]) -> None:
        self._forest, self.rebuilds = forest, rebuilds(adopted=self._adopted)
        self._limit = max(1, int(own_bytes * _FULL))
        self._entries: OrderedDict[str, PromptTree] = OrderedDict()
        self.evicted = self.rebuilt = 0
        """Trees that left for want of memory, and that were made again from the store."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[PromptTree]:
        return iter(self._entries.values())

    def has_key(self, key: str) -> bool:
        """Whether the user's id `key` has a tree."""
        return prompt_key((), key) in self._entries

    def known(self, prompt: Int32Array, key: str | None) -> PromptTree | None:
        """The entry under a prompt's name, if there is one."""
        return self._entries.get(prompt_key(prompt, key))

    def find(
        self, prompt: Int32Array, key: str | None, version: int, *, since: Sequence[StoredRollout] | None = ()
    ) -> tuple[PromptTree, int | None]:
        """Return the prompt's entry, new if need be, and how many tokens of `prompt` its tree starts with.

        None: the tree is of another prompt, and the text starts anew. A new tree gets what the store knows of the
        prompt besides `since`, at once or later (see `rebuilding`); with None, nothing.
        """
        name, entry, start = self._look(prompt, key)
        if entry is not None:
            return entry, start
        if since is None:
            return self._add(name, prompt, version), len(prompt)
        root, history = self.rebuilds.now(name, prompt, key, since)
        entry = self._add(name, root, version)
        if history is not None:
            self._adopt(entry, history)
        else:
            self.rebuilds.want(name, prompt, key)
        return self.find(prompt, key, version)

    def expect(self, prompt: Int32Array, key: str | None) -> None:
        """A prompt is coming: if it has no tree, it may get one of what the store knows."""
        name, entry, _ = self._look(prompt, key)
        if entry is None:
            self.rebuilds.expect(name, prompt, key)

    def _look(self, prompt: Int32Array, key: str | None) -> tuple[str, PromptTree | None, int | None]:
        """The name under which a prompt is, or would be; its entry, and how many tokens its tree starts with."""
        name = prompt_key(prompt, key)
        while (entry := self._entries.get(name)) is not None:
            shared, whole = self._forest.shared_prefix(entry.tree, prompt)
            if key is not None:
                return name, entry, shared if shared == whole else None
            if shared == whole == len(prompt):
                return name, entry, shared
            name += "'"  # another prompt with the same hash
        return name, None, None

    def _add(self, name: str, prompt: Int32Array, version: int) -> PromptTree:
        self._entries[name] = entry = PromptTree(name, self._forest.add_tree(prompt, version))
        return entry

    def _adopted(self, wanted: Wanted, history: History) -> None:
        """A history that was asked for is there; the tree of a prompt that is merely coming is made now."""
        entry = self._entries.get(wanted.name) or self._add(wanted.name, wanted.prompt, 0)
        self._adopt(entry, history)
        if self.is_full():
            self.make_room()

    def _adopt(self, entry: PromptTree, history: History) -> None:
        self._forest.adopt(entry.tree, history)
        self.rebuilt += 1

    def is_new(self, entry: PromptTree, rollout: StoredRollout) -> bool:
        """Whether a tree has not got by its history what another engine tells of, so that it shall keep it."""
        return self.rebuilds.is_new(entry.key, rollout)

    def replay(self, entry: PromptTree, start: int | None, rollout: StoredRollout, version: int) -> None:
        """Put a stored rollout into a tree that starts with `start` tokens of its prompt."""
        handle = self._forest.open(entry.tree, min(rollout.version, version), False, start is not None, 0, False)
        try:
            self.quote(handle, rollout.prompt_token_ids, start)
            for tokens, context in rollout.segments():
                self._forest.append(handle, tokens, context)
        except BaseException:
            self._forest.close(handle, False)
            raise
        self._forest.close(handle, True)

    def quote(self, handle: int, prompt: Int32Array, start: int | None) -> None:
        """Index what a prompt has beyond its tree's: another turn, or another prompt, under the user's key."""
        if (start or 0) < len(prompt):
            self._forest.append(handle, prompt[start or 0 :], True)

    def touch(self, entry: PromptTree) -> None:
        """Say that a prompt was used just now."""
        self._entries.move_to_end(entry.key)

    def is_full(self) -> bool:
        """Whether the own trees take more than they should; O(1)."""
        return self._forest.own_bytes() > self._limit

    def make_room(self) -> None:
        """Evict idle prompts, least recently used first, until the own trees fit; then make a live one smaller."""
        while self.is_full():
            idle = next((entry for entry in self if not entry.live), None)
            if idle is None:
                self._forest.relieve()
                return
            del self._entries[idle.key]
            self._forest.remove_tree(idle.tree)
            self.rebuilds.forget(idle.key)
            self.evicted += 1

    def check(self) -> None:
        """Walk every tree; AssertionError names the key and the fault."""
        for entry in self:
            fault = self._forest.check(entry.tree)
            assert not fault, f"tree of {entry.key}: {fault}"
        fault = self._forest.check_shared()
        assert not fault, f"shared tree: {fault}"

    def clear(self) -> None:
        """Forget all trees."""
        self.rebuilds.clear()
        self._forest.clear()
        self._entries.clear()
