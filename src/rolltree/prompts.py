"""Which tree belongs to which prompt, what the store still knows of it, and which prompts leave when memory is short.

Keys are the prompt's own tokens (hashed; the tree holds the prompt, so a collision is detected) or the user's id. Knows
no sessions beyond how many are live in a tree. Not thread-safe: the cache's lock guards it.

Invariant: a prompt with live sessions is never evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolltree._native import Forest
from rolltree.tokens import prompt_key
from rolltree.types import Int32Array

if TYPE_CHECKING:
    from rolltree.store import StoredRollout
    from rolltree.store.journal import Journal

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
        journal: asked for the earlier rollouts of a prompt that has no tree; None: nobody is.
        window: how many of these a tree gets.
        own_bytes: what all prompts' own trees may take.

    """

    def __init__(self, forest: Forest, journal: Journal | None, *, window: int, own_bytes: int) -> None:
        self._forest, self._journal, self._window = forest, journal, window
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
        self, prompt: Int32Array, key: str | None, version: int, *, restored: StoredRollout | None = None
    ) -> tuple[PromptTree, int | None]:
        """Return the prompt's entry, new if need be, and how many tokens of `prompt` its tree starts with.

        None: the tree is of another prompt, and the text starts anew. A new tree gets what the store knows of the
        prompt, unless it is made for a rollout that is being `restored`; later versions count as of `version`.
        """
        name = prompt_key(prompt, key)
        while (entry := self._entries.get(name)) is not None:
            shared, whole = self._forest.shared_prefix(entry.tree, prompt)
            if key is not None:
                return entry, shared if shared == whole else None
            if shared == whole == len(prompt):
                return entry, shared
            name += "'"  # another prompt with the same hash
        known = [] if restored or not self._journal else self._journal.earlier(prompt, key, self._window)
        first = known[0] if known else restored
        made_for = version if first is None else min(first.version, version)  # the tree's weights are of that version
        self._entries[name] = PromptTree(
            name, self._forest.add_tree(prompt if first is None else first.prompt_token_ids, made_for)
        )
        for rollout in known:
            entry, start = self.find(rollout.prompt_token_ids, key, version)
            self.replay(entry, start, rollout, version)
        self.rebuilt += bool(known)
        return self.find(prompt, key, version)

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
            self.evicted += 1

    def clear(self) -> None:
        """Forget all trees."""
        self._forest.clear()
        self._entries.clear()
