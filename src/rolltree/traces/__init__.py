"""Recorded rollouts: what one is, and files of them as JSON lines (the trace format of docs/store.md).

Knows neither trees nor the store. Logs of other programs are read in `replay`.
"""

from rolltree.traces.format import read_rollouts
from rolltree.traces.rollout import Span, StoredRollout

__all__ = ["Span", "StoredRollout", "read_rollouts"]
