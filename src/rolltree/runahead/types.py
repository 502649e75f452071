"""What goes into the run-ahead controller and what comes out: frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The engine at one moment."""

    clock: float
    """Seconds of any clock that only grows."""
    live: int
    """Real requests that run, and conversations that may come back with another turn."""
    waiting: int
    """Real requests that are queued, or about to be submitted."""
    running: int
    """Run-ahead requests in the engine."""
    capacity: int
    """Requests that the engine can run together."""
    step_seconds: float
    """Seconds of an engine step with the live requests alone; 0 while it is not known."""
    row_seconds: float
    """Seconds that one run-ahead request adds to a step; 0 where the step has room for it, below its cost's floor."""
    tail_tokens: float = float("inf")
    """Tokens that the longest live request is expected to generate yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A prompt that will be sampled soon."""

    key: str
    """Identity of the prompt, the same in `Launch` and `PromptOutcome`."""
    rollouts: float
    """Rollouts that its tree holds, those launched for its next use left out; 0 is cold."""
    soon: int
    """Training steps until it is sampled; 1 is the next."""
    max_tokens: int
    """Longest useful rollout, tokens."""
    prefill_seconds: float = 0.0
    """What starting it adds to an engine step: its prompt, if no other request has just the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One request to submit now."""

    key: str
    sample: int
    """How many launches this prompt had before since it was last sampled: which of its coming seeds to use."""
    max_tokens: int
    """Reserved from the budget; `RunAheadController.finished` gives back what was not generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, in this order."""

    stop: bool
    """Cancel every run-ahead request now, before any real request is submitted."""
    launch: tuple[Launch, ...]
    """Requests to submit into free slots; empty when `stop`."""
    reason: str
    """Why nothing (more) is launched, one of a few fixed words; for logs and metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStep:
    """One engine step, or several together, while a training step's real requests were live."""

    seconds: float
    live_steps: int
    """(real request, engine step) pairs."""
    running_steps: int
    """(run-ahead request, engine step) pairs."""
    row_seconds: float
    """Seconds that each of the latter added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOutcome:
    """The finished real rollouts of one prompt in one training step."""

    key: str
    rollouts: float
    """Rollouts that its tree held before."""
    seconds: float
    """Engine time that they held: each step's seconds, shared equally among the real requests in it."""
    paced: float
    """The same times the pace of each rollout, summed: tokens per row-step, where its draft tokens count as the part of
    a row-step that they cost."""
