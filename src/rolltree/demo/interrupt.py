"""Ctrl-C that can be pressed twice by accident without losing the report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def patient_interrupts() -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt, the second is ignored (cleaning up takes seconds), the third raises.

    Terminals and process managers often deliver one Ctrl-C twice. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    presses = 0

    def count(_signal: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses != 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, count)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
