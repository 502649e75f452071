"""Recorded rollouts, and how they are chosen: by step, by sample, by prompt.

Token arrays are int32. Does not read files (see `reading`) and changes no tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rolltree.errors import InvalidInputError
from rolltree.traces.rollout import Span, segments
from rolltree.types import Int32Array

Split = Literal["all", "even", "odd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One recorded answer."""

    prompt_id: str
    prompt: Int32Array
    """Shape [p]."""
    tokens: Int32Array
    """Shape [n], n >= 1."""
    step: int
    """Training step that generated it."""
    sample: int
    """Which of the prompt's samples of this step."""
    file: str = ""
    """Name of the file it was read from."""
    context: tuple[Span, ...] = ()
    """Parts [start, stop) of `tokens` that were not generated (tool output): in order, apart, none at the end."""

    @property
    def generated(self) -> int:
        """Tokens that the policy wrote."""
        return len(self.tokens) - sum(stop - start for start, stop in self.context)

    def segments(self) -> Iterator[tuple[Int32Array, bool]]:
        """The rollout cut into (tokens, whether they are context), in order."""
        return segments(self.tokens, self.context)

    def cut(self, length: int) -> Rollout:
        """The first `length` tokens, ending with one that was generated."""
        spans = tuple((start, min(stop, length)) for start, stop in self.context if start < length)
        end = min(length, len(self.tokens))
        if spans and spans[-1][1] == end:
            end, spans = spans[-1][0], spans[:-1]
        return replace(self, tokens=self.tokens[:end], context=spans)


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """The rollouts that one training step generates; samples of a prompt stand together."""

    number: int
    rollouts: list[Rollout]


@dataclass(frozen=True, slots=True)
class Recording:
    """What is replayed: `history` is known before, `steps` are generated one after the other."""

    history: list[TrainingStep]
    steps: list[TrainingStep]

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts to generate, in the order of their steps."""
        return [rollout for step in self.steps for rollout in step.rollouts]

    @property
    def history_rollouts(self) -> int:
        """Rollouts known before."""
        return sum(len(step.rollouts) for step in self.history)

    @property
    def tokens(self) -> int:
        """Tokens to generate."""
        return sum(rollout.generated for rollout in self.rollouts)


@dataclass(slots=True, kw_only=True)
class Selection:
    """Which part of what was read takes part."""

    samples: int | None = None
    """First samples of each prompt and step; None takes all."""
    history_samples: int | None = None
    """The same for the history."""
    split: Split = "all"
    """Every prompt, or every second one: tune on one half, report the other."""
    max_tokens: int | None = None
    """Rollouts to generate end after so many tokens; the history stays whole."""
    seed: int | None = None
    """Shuffles the order in which prompts are submitted; None keeps the recorded order."""
    _place: dict[str, int] = field(default_factory=dict)

    def select(self, history: Iterable[Rollout], rollouts: Iterable[Rollout]) -> Recording:
        """Group into steps, in their order; prompts are numbered as they first appear in what is replayed.

        Raises:
            InvalidInputError: nothing is left to replay.

        """
        rollouts, history = [self._cut(rollout) for rollout in rollouts], list(history)
        rollouts = [rollout for rollout in rollouts if len(rollout.tokens)]  # a cut may leave nothing but tool output
        for rollout in [*rollouts, *history]:
            self._place.setdefault(rollout.prompt_id, len(self._place))
        recording = Recording(self._steps(history, self.history_samples), self._steps(rollouts, self.samples))
        if not recording.steps:
            raise InvalidInputError("--split", self.split, "a half with at least one prompt", "Use --split all.")
        return recording

    def _steps(self, rollouts: Sequence[Rollout], samples: int | None) -> list[TrainingStep]:
        steps: dict[int, dict[str, list[Rollout]]] = {}
        for rollout in rollouts:
            if self._chosen(rollout.prompt_id):
                steps.setdefault(rollout.step, {}).setdefault(rollout.prompt_id, []).append(rollout)
        return [TrainingStep(number, self._ordered(groups, samples)) for number, groups in sorted(steps.items())]

    def _cut(self, rollout: Rollout) -> Rollout:
        if self.max_tokens is None or len(rollout.tokens) <= self.max_tokens:
            return rollout
        return rollout.cut(self.max_tokens)

    def _chosen(self, prompt_id: str) -> bool:
        return self.split == "all" or self._place[prompt_id] % 2 == (self.split == "odd")

    def _ordered(self, groups: dict[str, list[Rollout]], samples: int | None) -> list[Rollout]:
        order = list(groups)
        if self.seed is not None:
            random.Random(self.seed).shuffle(order)
        by_sample = (sorted(groups[name], key=lambda rollout: rollout.sample)[:samples] for name in order)
        return [rollout for group in by_sample for rollout in group]
