"""A naive model of the native forest: every substring in a dict. Slow, obvious, and the judge of the fast one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

UNIT = 64
"""Weight of one fresh occurrence, as the core counts it."""


@dataclass
class Text:
    tokens: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    reader: bool = False
    from_prompt: bool = True

    def add(self, tokens: list[int], weight: int) -> None:
        self.tokens += tokens
        self.weights += [weight] * len(tokens)


@dataclass
class NaiveTree:
    prompt: list[int]
    depth: int
    window: int
    context_weight: int = 16
    kept: list[Text] = field(default_factory=list)
    live: dict[int, Text] = field(default_factory=dict)

    def close(self, handle: int, keep: bool) -> None:
        text = self.live.pop(handle)
        if text.reader or not keep or not text.tokens or not self.window:
            return
        self.kept.append(text)
        del self.kept[: max(0, len(self.kept) - self.window)]

    def counts(self) -> Counter[tuple[int, ...]]:
        """Weighted occurrences of every substring of at most `depth` tokens, by the weight of its last token."""
        found: Counter[tuple[int, ...]] = Counter()
        self._count(found, [], self.prompt, [self.context_weight] * len(self.prompt))
        for text in self.kept + [t for t in self.live.values() if not t.reader]:
            self._count(found, self.prompt if text.from_prompt else [], text.tokens, text.weights)
        return found

    def _count(self, found: Counter[tuple[int, ...]], before: list[int], tokens: list[int], weights: list[int]) -> None:
        whole = before + tokens
        for end in range(len(before), len(whole)):
            for start in range(max(0, end + 1 - self.depth), end + 1):
                found[tuple(whole[start : end + 1])] += weights[end - len(before)]

    def continuations(self, handle: int, drafted: list[int]) -> tuple[int, dict[int, int]]:
        """The longest suffix of text + drafted that is known to go on, and the counts of what follows it."""
        text = self.live[handle]
        whole = (self.prompt if text.from_prompt else []) + text.tokens + drafted
        counts = self.counts()
        for length in range(min(self.depth - 1, len(whole)), 0, -1):
            suffix = tuple(whole[len(whole) - length :])
            after = {s[-1]: n for s, n in counts.items() if n and len(s) == length + 1 and s[:-1] == suffix}
            if after:
                return length, after
        return 0, {}

    def all_continuations(self, handle: int, drafted: list[int]) -> set[int]:
        """What follows any suffix (of at least one token) of text + drafted."""
        text = self.live[handle]
        whole = ((self.prompt if text.from_prompt else []) + text.tokens + drafted)[-(self.depth - 1) :]
        found = [s for s, n in self.counts().items() if n and len(s) > 1]
        return {s[-1] for s in found if len(s) - 1 <= len(whole) and list(s[:-1]) == whole[len(whole) - len(s) + 1 :]}
