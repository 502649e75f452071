"""Rollouts to index: a Markov source with repeats, or recorded traces.

The Markov source is that of the published measurements of the peer: each prompt has its own sparse chain over a few
hundred tokens plus phrases that all prompts share; 3 % of the tokens are novel. Deterministic for a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.replay.reading import TraceReader
from rolltree.tokens import as_tokens
from rolltree.types import Int32Array

VOCABULARY = 49152


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with the rollouts that came before and those that are to be generated now."""

    prompt: Int32Array
    history: list[Int32Array]
    now: list[Int32Array]


def markov(prompts: int, samples: int, length: int, seed: int = 0) -> list[Group]:
    """Make `prompts` groups of `samples` earlier and `samples` new rollouts of `length` tokens."""
    random = np.random.default_rng(seed)
    phrases = [random.integers(0, VOCABULARY, random.integers(4, 24)) for _ in range(2000)]
    groups = []
    for index in range(prompts):
        own = np.random.default_rng([seed, index])
        source = _Source(own, [phrases[i] for i in own.integers(0, len(phrases), 40)])
        rollouts = [source.rollout(length) for _ in range(2 * samples)]
        groups.append(Group(source.prompt(), rollouts[:samples], rollouts[samples:]))
    return groups


class _Source:
    STATES, NOVEL, PHRASE = 400, 0.03, 0.04
    BRANCHES = np.cumsum([0.75, 0.15, 0.07])

    def __init__(self, random: np.random.Generator, phrases: list[np.ndarray]) -> None:
        self.random, self.phrases = random, phrases
        self.tokens = random.choice(VOCABULARY, self.STATES, replace=False)
        self.next = random.integers(0, self.STATES, (self.STATES, 4))

    def prompt(self) -> Int32Array:
        return as_tokens(self.tokens[self.random.integers(0, self.STATES, 128)])

    def rollout(self, length: int) -> Int32Array:
        state, out = int(self.random.integers(0, self.STATES)), list[int]()
        while len(out) < length:
            kind = self.random.random()
            if kind < self.NOVEL:
                out.append(int(self.random.integers(0, VOCABULARY)))
            elif kind < self.NOVEL + self.PHRASE:
                out.extend(self.phrases[self.random.integers(0, len(self.phrases))].tolist())
            else:
                state = int(self.next[state, np.searchsorted(self.BRANCHES, self.random.random())])
                out.append(int(self.tokens[state]))
        return as_tokens(out[:length])


def load_data(traces: Sequence[str], prompts: int, length: int) -> dict[str, list[Group]]:
    """The Markov source as "markov", and each of `traces`, NAME=EARLIER,LATER: up to 8 rollouts a prompt."""
    data = {"markov": markov(prompts, 8, length)}
    for spec in traces:
        name, _, files = spec.partition("=")
        earlier, _, later = files.partition(",")
        if not later:
            raise InvalidInputError("--traces", spec, "NAME=EARLIER,LATER", "Name two trace files of the same prompts.")
        data[name] = recorded(Path(earlier), Path(later), 8)
    return data


def recorded(history: Path, now: Path, samples: int) -> list[Group]:
    """Read two trace files of the same prompts: an earlier checkpoint and a later one."""
    earlier, later = _read(history), _read(now)
    shared = [key for key in later if key in earlier]
    if not shared:
        raise InvalidInputError("traces", f"{history} {now}", "two files that share prompts")
    return [
        Group(later[key][0], earlier[key][1][:samples], [r for r in later[key][1][:samples] if len(r)])
        for key in shared
    ]


def _read(path: Path) -> dict[str, tuple[Int32Array, list[Int32Array]]]:
    groups: dict[str, tuple[Int32Array, list[Int32Array]]] = {}
    for rollout in TraceReader().read([path]):
        groups.setdefault(rollout.prompt_id, (rollout.prompt, []))[1].append(rollout.tokens)
    return groups


def take(groups: Sequence[Group], live: int, samples: int) -> list[Group]:
    """Return groups that hold `live` rollouts to generate: one sample, or whole groups."""
    if live < samples:
        return [Group(g.prompt, g.history, g.now[:live]) for g in groups[:1]]
    chosen, total = list[Group](), 0
    while total < live:
        group = groups[len(chosen) % len(groups)]
        chosen.append(Group(group.prompt, group.history, group.now[: live - total]))
        total += len(chosen[-1].now)
    return chosen
