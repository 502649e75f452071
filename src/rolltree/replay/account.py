"""What a reader found and what it left out: counted, and said in the printed card and the JSON document."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rolltree.replay.parsing import Found

NAMED = 20
"""Skipped lines that the document names; all are counted."""


@dataclass(slots=True)
class Account:
    """Sums over everything that one reader read."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Rollouts by kind of record; see `parsing`."""
    step_from: Counter[str] = field(default_factory=Counter)
    """Rollouts by where their step stood."""
    skipped: int = 0
    """Lines that could not be read, with `--skip-bad-lines`."""
    skipped_lines: list[dict[str, Any]] = field(default_factory=list)
    """The first of them: `{file, line, why}`."""
    damaged: list[str] = field(default_factory=list)
    """Files that end before their end."""
    empty: int = 0
    """Rollouts without a generated token: nothing to generate."""
    repeated: int = 0
    """Rows that a TRL log had in the file before."""
    evaluation: int = 0
    """Rows of evaluations, left out (kept and counted with `--keep-evaluation`)."""
    evaluation_files: int = 0
    """Files of a folder that hold evaluation rollouts by their place; not read."""
    context_tokens: int = 0
    """Tokens of answers that were not generated (tool output)."""
    context_spans: int = 0
    media: int = 0
    """Pictures and sounds in messages."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what could not be told apart."""

    def add(self, found: Found) -> None:
        """Count one rollout that was read."""
        self.kinds[found.kind] += 1
        self.step_from[found.step_from] += 1
        self.media += found.media
        self.context_spans += len(found.rollout.context)
        self.context_tokens += len(found.rollout.tokens) - found.rollout.generated

    def skip(self, file: str, line: int, why: str, *, ends_file: bool) -> None:
        """Count one line that is left out."""
        self.skipped += 1
        if ends_file:
            self.damaged.append(file)
        if len(self.skipped_lines) < NAMED:
            self.skipped_lines.append({"file": file, "line": line, "why": why[:200]})

    def document(self) -> dict[str, Any]:
        """The keys of the JSON document."""
        return {
            "formats": dict(self.kinds),
            "step_from": dict(self.step_from),
            "skipped_lines": self.skipped,
            "skipped": self.skipped_lines,
            "damaged_files": self.damaged,
            "empty_rollouts": self.empty,
            "repeated_rollouts": self.repeated,
            "evaluation_rollouts": self.evaluation,
            "evaluation_files": self.evaluation_files,
            "context_tokens": self.context_tokens,
            "context_spans": self.context_spans,
            "media_parts": self.media,
            "notes": self.notes,
        }

    def sentences(self, *, kept_evaluation: bool = False) -> list[str]:
        """The same for a person; nothing about what did not occur."""
        counted = [
            (self.skipped, "lines that could not be read were left out."),
            (self.empty, "rollouts without a token were left out."),
            (self.repeated, "rows that TRL had logged in the file before were left out."),
            (self.evaluation, f"evaluation rollouts were {'kept' if kept_evaluation else 'left out'}."),
            (self.evaluation_files, "files of evaluation rollouts were not read."),
            (self.context_tokens, f"tokens of tool output and the like, in {self.context_spans:,} parts, are context."),
            (self.media, "pictures or sounds were left out: one text stands for many (docs/replay.md)."),
        ]  # fmt: skip
        named = [f"  {line['file']}:{line['line']}: {line['why']}" for line in self.skipped_lines]
        damaged = [f"{file} ends before its end; what stood before is used." for file in self.damaged]
        said = [f"{count:,} {what}" for count, what in counted if count]
        return [self._read(), *said[: self.skipped > 0], *named, *damaged, *said[self.skipped > 0 :], *self.notes]

    def _read(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        steps = ", ".join(self.step_from)
        return f"Read: {kinds} records; step from: {steps}."
