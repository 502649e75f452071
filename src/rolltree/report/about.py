"""What a run says of itself, for a page: its settings and its machine, flat. Anything else in the file is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rolltree.runlog import ABOUT

_DEEP = 8  # levels of run.json that are shown


def read_about(folder: Path) -> list[tuple[str, str]]:
    """What run.json says, flat; empty where there is none, or something else."""
    try:
        document = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    parts = [document.get(name) for name in ("about", "machine")] if isinstance(document, dict) else []
    return [pair for part in parts if isinstance(part, dict) for pair in _flat(part)]


def _flat(values: dict[str, Any], prefix: str = "", level: int = 0) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        inside = isinstance(value, dict) and level < _DEEP
        found += _flat(value, f"{prefix}{name} ", level + 1) if inside else [(prefix + name, f"{value!s:.400}")]
    return found
