"""rolltree's counters beside vLLM's: in Prometheus, and in `llm.get_metrics()`.

The proposer counts in the worker, vLLM reports in the front end, which may be another process. So each worker keeps its
numbers in a small memory-mapped file, and the front end's collector reads all of them when it is asked. A step costs
one store of a few numbers; nothing is sent.

The front end makes the folder and names it in the environment, which its processes inherit. Workers that do not see
that folder (other machines) are not in the figures; `Control.stats` asks them itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rolltree.vllm.board import COUNTERS, FOLDER, GAUGES, NAMES, SUFFIX


class Collector:
    """What Prometheus asks in the front end: sums over the workers' files.

    Has no attribute `_name`, so vLLM does not take it for one of its own and drop it when a second engine starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Any]:
        """Yield every metric, named `vllm:rolltree_...` so that `llm.get_metrics()` has it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        totals = self._totals()
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"vllm:rolltree_{name}", text, value=totals[name])
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"vllm:rolltree_{name}", text, value=totals[name])

    def _totals(self) -> dict[str, float]:
        total = np.zeros(len(NAMES))
        for path in self.folder.glob(f"*{SUFFIX}"):
            values = np.fromfile(path, np.float64)
            if len(values) == len(NAMES):  # else it is being made
                values[len(COUNTERS) :] *= _runs(int(path.name.partition("-")[0]))
                total += values
        return dict(zip(NAMES, total.tolist(), strict=True))


def _runs(pid: int) -> bool:
    """Return whether the process is there; what a dead one counted stays counted, but it holds nothing."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


_folder: tempfile.TemporaryDirectory[str] | None = None


def publish() -> None:
    """Make the folder and register the collector, once a front end; before its workers start."""
    global _folder
    if _folder is not None:
        return
    from prometheus_client import REGISTRY

    _folder = tempfile.TemporaryDirectory(prefix="rolltree-metrics-")
    os.environ[FOLDER] = _folder.name
    REGISTRY.register(Collector(Path(_folder.name)))
