"""What one engine step costs, in seconds: the profiles behind `--cost`, and their view as a budget's cost model.

A roofline step runs its kernels one after the other: dense layers take the longer of reading the weights once and of
multiplying N tokens, attention reads the keys and values of every live request once, however many tokens it verifies:

    t(N, C) = max(weights / bandwidth, 2 parameters N / peak) + kv_bytes C / bandwidth

N: tokens in the batch (one for each row, drafts, prompt tokens of new requests); C: tokens of context of all rows.
On an H100 (bf16: 989 TFLOP/s dense, 3.35 TB/s) both terms meet at N = 989 / 3.35 = 295 tokens for any dense model of
2 bytes a weight. Left out: kernel launches, sampling, attention's own arithmetic, imperfect overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Load:
    """What one step works on."""

    rows: int
    """Live requests."""
    drafted: int = 0
    """Draft tokens that are verified, of all rows."""
    longest: int = 0
    """The most draft tokens of one row."""
    prefill: int = 0
    """Prompt tokens of new requests."""
    context: int = 0
    """Tokens of context, of all rows."""


class Profile(Protocol):
    """Seconds of a step, and what a drafter's budget is told about them."""

    @property
    def name(self) -> str:
        """What the document calls it."""

    def seconds(self, load: Load) -> float:
        """Seconds of one step."""

    def model(self, load: Load) -> CostModel:
        """The same as a budget's cost model, for the rows and the context of `load`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """A dense decoder on one accelerator, 2 bytes a weight; see the module for the formula."""

    name: str
    parameters: float
    """Weights that take part in matrix products (the input embedding is only looked up)."""
    kv_bytes: float
    """Bytes of keys and values for one token of context: 2 x layers x KV heads x head size x 2."""
    bandwidth: float = 3.35e12
    """Bytes per second of memory."""
    peak: float = 989e12
    """Floating point operations per second."""

    @property
    def weights_seconds(self) -> float:
        """Seconds to read the weights once."""
        return 2 * self.parameters / self.bandwidth

    @property
    def token_seconds(self) -> float:
        """Seconds of arithmetic for one token."""
        return 2 * self.parameters / self.peak

    def seconds(self, load: Load) -> float:
        """See the module."""
        tokens = load.rows + load.drafted + load.prefill
        return max(self.weights_seconds, self.token_seconds * tokens) + self._attention(load)

    def model(self, load: Load) -> CostModel:
        """Below the knee tokens are free, above it each costs its arithmetic."""
        base = self._attention(load)
        return CostModel(base=base, token=self.token_seconds, floor=base + self.weights_seconds)

    def _attention(self, load: Load) -> float:
        return self.kv_bytes * load.context / self.bandwidth


@dataclass(frozen=True, slots=True)
class Measured:
    """A cost model fitted to observed steps; context does not matter to it, prompt tokens cost what drafts cost."""

    name: str
    cost: CostModel

    def seconds(self, load: Load) -> float:
        """See `CostModel.seconds`."""
        return self.cost.seconds(load.rows, load.drafted, load.longest) + self.cost.token * load.prefill

    def model(self, load: Load) -> CostModel:
        """The model itself."""
        return self.cost


# Milliseconds of a verify step of SmolLM2-135M (bf16, transformers, 2 CPU cores), by rows and tokens a row.
_CPU_TOKENS = (1, 2, 4, 8, 16)
_CPU_MILLISECONDS = {
    1: (22, 22, 23, 25, 29),
    4: (31, 31, 35, 44, 63),
    8: (39, 36, 46, 65, 92),
    16: (56, 50, 75, 101, 158),
}


def _cpu() -> Measured:
    observations = [
        (rows, rows * (tokens - 1), tokens - 1, milliseconds * 1e-3)
        for rows, row in _CPU_MILLISECONDS.items()
        for tokens, milliseconds in zip(_CPU_TOKENS, row, strict=True)
    ]
    return Measured("cpu-2core", CostModel.fit(observations))


# Qwen2.5-7B: 28 layers, 4 KV heads of 128, 7.62 billion weights of which 0.54 are the input embedding.
# Qwen2.5-1.5B: 28 layers, 2 KV heads of 128, 1.54 billion weights, input and output embedding tied.
_ROOFLINES = {
    "h100-7b": Roofline(name="h100-7b", parameters=7.07e9, kv_bytes=2 * 28 * 4 * 128 * 2),
    "h100-1.5b": Roofline(name="h100-1.5b", parameters=1.54e9, kv_bytes=2 * 28 * 2 * 128 * 2),
}
PROFILES = (*_ROOFLINES, "cpu-2core")


def load_profile(name: str) -> Profile:
    """Return a built-in profile by name, or the one in a file written by `CostModel.save`.

    Raises:
        InvalidInputError: neither a profile nor such a file.

    """
    if name in _ROOFLINES:
        return _ROOFLINES[name]
    if name == "cpu-2core":
        return _cpu()
    if not Path(name).is_file():
        allowed = f"one of {', '.join(PROFILES)}, or a file"
        raise InvalidInputError("--cost", name, allowed, "`rolltree bench engine` measures this machine.")
    return Measured(name, CostModel.load(name))
