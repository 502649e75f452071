"""Processes that stand for an engine's in tests of `bench.vllm_process`: they end without a word. Imports little."""

from __future__ import annotations

import os
import signal
from typing import Any

from rolltree.bench.vllm_worker import About

ABOUT = About(runner="V1", max_length=64, vocab=50, device="cpu", dtype="float32", coupled=False)


def killed_at_work(pipe: Any, spec: Any, prepare: Any) -> None:
    """Takes an order, and is killed."""
    pipe.send(ABOUT)
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before(pipe: Any, spec: Any, prepare: Any) -> None:
    """Is killed with an order that it never reads."""
    pipe.send(ABOUT)
    pipe.poll(60)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves_at_start(pipe: Any, spec: Any, prepare: Any) -> None:
    """Ends before it answers."""
    os._exit(3)


def deaf(pipe: Any, spec: Any, prepare: Any) -> None:
    """Never ends by itself, and ignores being told to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send(ABOUT)
    signal.pause()
