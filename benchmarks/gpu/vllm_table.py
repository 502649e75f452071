"""What the vLLM part found, for the screen and for the exit code. Loads neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolltree.bench.verdict import BASELINE

Row = dict[str, Any]
KEYS = (
    "model", "case", "runner", "max_draft", "temperature", "batch", "epoch", "step_milliseconds_median",
    "step_milliseconds_p99", "tokens_per_second", "tokens_per_step", "draft_share", "speedup",
)  # fmt: skip
LABELS = ("model", "case", "runner", "K", "T", "batch", "epoch", "ms/step", "p99", "tokens/s", "tokens/step", "host")


def is_exact(rows: Sequence[Row]) -> bool:
    """Whether every text that could be judged was the plain engine's; its own do not count."""
    judged = [row for row in rows if row.get("identical_rollouts") is not None and row["case"] != BASELINE]
    return all(row["identical_rollouts"] == row["rollouts"] for row in judged)


def table_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and lines of what ran, for the screen."""
    lines = [
        [*[row.get(key) for key in KEYS], "-" if row["identical_rollouts"] is None
         else f"{row['identical_rollouts']}/{row['rollouts']}"]
        for row in rows if not row["error"]
    ]  # fmt: skip
    return [*LABELS, "speedup", "same text"], lines
