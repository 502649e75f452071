"""Settings of the demo. Holds no behaviour beyond checking that the values make sense."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from rolltree.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What to run and where to write the plot."""

    epochs: int = 8
    """Passes over the same prompts."""
    prompts: int = 64
    """Problems."""
    samples: int = 8
    """Completions per prompt and epoch: GRPO's group size."""
    batch: int = 64
    """Completions per optimizer step; a multiple of `samples`."""
    slots: int = 32
    """Completions decoded together."""
    max_draft: int = 16
    """Draft tokens per completion and forward pass."""
    max_tokens: int = 176
    """Completion tokens at most."""
    learning_rate: float = 1e-4
    """Of GRPO; the built-in model collapses at 1e-3."""
    seed: int = 0
    """Of everything random."""
    compare_generate: bool = True
    """Time the trainer's own `model.generate` on every batch, beside the two runs."""
    plot: Path | None = Path("rolltree-demo.png")
    """Where the figure goes; None draws none."""
    run_dir: Path | None = None
    """Folder for the metrics of every batch, from which `rolltree report` makes a page; None keeps none."""

    def __post_init__(self) -> None:
        """Raise InvalidInputError naming the first field that is out of range."""
        for name in ("epochs", "prompts", "samples", "batch", "slots", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"demo.{name}", getattr(self, name), "at least 1")
        if self.samples < 2:
            raise InvalidInputError(
                "demo.samples", self.samples, "at least 2", "GRPO compares the samples of a prompt."
            )
        if self.batch % self.samples:
            raise InvalidInputError("demo.batch", self.batch, f"a multiple of demo.samples = {self.samples}")
        if self.prompts * self.samples % self.batch:
            raise InvalidInputError("demo.prompts", self.prompts, f"a multiple of {self.batch // self.samples}")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, or batches of rollouts, in one epoch."""
        return self.prompts * self.samples // self.batch

    @classmethod
    def quick(cls, **changes: object) -> DemoConfig:
        """A run of seconds for continuous integration: 2 epochs over 8 prompts."""
        return cls(**({"epochs": 2, "prompts": 8, "samples": 4, "batch": 16, "slots": 16} | changes))  # type: ignore[arg-type]

    def settings(self) -> dict[str, object]:
        """The settings as a plain dictionary, paths as text; `model` is the one that the package ships."""
        values = {"model": "built-in"} | {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
