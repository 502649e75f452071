"""Rollouts of as many prompts as wanted, with the repetition of recorded ones.

A made prompt is a few recorded prompts one behind the other, and its rollouts are samples of these one behind the
other. Each recorded token t becomes 3 t, 3 t + 1 or 3 t + 2, drawn once for each made prompt: within a prompt every
repetition of the recording stays, in a sample, between samples and between checkpoints; of two prompts made of the same
recording, a third of the tokens are equal and one in 81 pieces of four. Frequent tokens keep small ids, as in a
vocabulary of 150,000, so files compress as those of such a model do.

Pure: the same seed makes the same rollouts, each epoch by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.replay.records import Rollout
from rolltree.types import Int32Array

SPREAD = 3
"""Ids that a recorded token may become."""
Group = dict[str, list[Rollout]]
"""Samples by recorded prompt, of one checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The training to make."""

    prompts: int
    samples: int = 16
    parts: int = 2
    """Recorded prompts that make one: two recorded answers have about the length that is wanted."""
    step: int = 512
    """Prompts of a training step."""


class Workload:
    """Epochs over the same prompts.

    Args:
        checkpoints: recorded rollouts of the same prompts, a list for each checkpoint, oldest first; epoch e takes that
            of number e, then the last one's further samples.
        shape: how many.
        seed: of everything that is drawn.

    Raises:
        InvalidInputError: no prompt that every checkpoint knows.

    """

    def __init__(self, checkpoints: Sequence[Sequence[Rollout]], shape: Shape, *, seed: int = 0) -> None:
        self._groups = [_by_prompt(rollouts) for rollouts in checkpoints]
        self._names = sorted(set.intersection(*[set(group) for group in self._groups]))
        if not self._names:
            raise InvalidInputError("FILES", len(checkpoints), "checkpoints that have prompts in common")
        self.shape, self._seed = shape, seed
        self._ids = 1 + max(int(r.tokens.max()) for rollouts in checkpoints for r in rollouts)
        self._ids = max(self._ids, 1 + max(int(r.prompt.max()) for rollouts in checkpoints for r in rollouts))

    def steps(self, epoch: int) -> Iterator[list[Rollout]]:
        """The rollouts of each training step of an epoch, prompts in an order of its own."""
        order = np.random.default_rng((self._seed, 1, epoch)).permutation(self.shape.prompts).tolist()
        for start in range(0, len(order), self.shape.step):
            made = (self.rollouts(prompt, epoch) for prompt in order[start : start + self.shape.step])
            yield [rollout for group in made for rollout in group]

    def rollouts(self, prompt: int, epoch: int) -> list[Rollout]:
        """The samples of one prompt in one epoch."""
        draw = np.random.default_rng((self._seed, 0, prompt))
        parts = [self._names[i] for i in draw.choice(len(self._names), self.shape.parts)]
        shift = draw.integers(0, SPREAD, self._ids, dtype=np.int8)
        chosen = [self._samples(name, epoch, draw) for name in parts]
        text = _relabelled([part[0].prompt for part in chosen], shift)
        return [
            Rollout(
                prompt_id=f"p{prompt}", prompt=text, tokens=_relabelled([part[s].tokens for part in chosen], shift),
                step=epoch, sample=s,
            )
            for s in range(self.shape.samples)
        ]  # fmt: skip

    def _samples(self, name: str, epoch: int, draw: np.random.Generator) -> list[Rollout]:
        """The next samples of an order that is the prompt's own, so that no epoch repeats another's while some last."""
        checkpoint = min(epoch, len(self._groups) - 1)
        orders = [draw.permutation(len(group[name])) for group in self._groups]
        recorded, order = self._groups[checkpoint][name], orders[checkpoint]
        first = (epoch - checkpoint) * self.shape.samples
        return [recorded[order[(first + s) % len(order)]] for s in range(self.shape.samples)]


def _by_prompt(rollouts: Sequence[Rollout]) -> Group:
    groups: Group = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt_id, []).append(rollout)
    return groups


def _relabelled(pieces: Sequence[Int32Array], shift: np.ndarray) -> Int32Array:
    tokens = np.concatenate(pieces)
    made: Int32Array = (SPREAD * tokens + shift[tokens]).astype(np.int32)
    return made
