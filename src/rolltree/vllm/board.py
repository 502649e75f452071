"""A worker's counters where the front end reads them: a small memory-mapped file, see `prometheus`."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rolltree.metrics import StoreStats, docs_of
from rolltree.serving.counts import ServingCounts

FOLDER = "ROLLTREE_METRICS_FOLDER"
COUNTERS = docs_of(ServingCounts) | {f"store_{name}": text for name, text in docs_of(StoreStats).items()}
GAUGES = {
    "cache_prompts": "Prompts with a tree",
    "cache_bytes": "Bytes of all trees",
    "sessions": "Requests that are running",
    "paused": "1 while drafting is paused",
}
NAMES = (*COUNTERS, *GAUGES)
SUFFIX = ".f64"


class Board:
    """A worker's numbers, in a file of its own where `folder` is given, else in memory only."""

    def __init__(self, folder: str | None) -> None:
        self._values: Any = np.zeros(len(NAMES))
        if folder and Path(folder).is_dir():
            handle, path = tempfile.mkstemp(dir=folder, prefix=f"{os.getpid()}-", suffix=SUFFIX)
            os.close(handle)
            self._values = np.memmap(path, np.float64, "w+", shape=(len(NAMES),))
        weakref.finalize(self, self._values.__setitem__, slice(len(COUNTERS), None), 0.0)

    def write(self, values: Mapping[str, float]) -> None:
        """Show these numbers; names that are not shown are ignored."""
        self._values[:] = [values.get(name, 0.0) for name in NAMES]
