"""A vLLM engine in a process of its own, from the side that gives the orders; the other one is `vllm_worker`.

The process has a session of its own: what vLLM starts below it ends with it, and a Ctrl-C reaches the parent alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rolltree.bench.vllm_worker import About, EngineSpec, Epoch, Failed, Order, reason, work
from rolltree.errors import InvalidInputError, RolltreeError

SECONDS_TO_END = 20
Prepare = Callable[[Any, str], None]


class EngineError(RolltreeError):
    """An engine did not start, or ended; the message is its reason."""


class Worker:
    """An engine in its process, from the side that gives the orders."""

    def __init__(self, spec: EngineSpec, prepare: Prepare | None) -> None:
        self._spec = spec
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=work, args=(end, spec, prepare))
        self._process.start()
        self._late: float | None = None
        end.close()

    def start(self) -> None:
        """Wait until the engine is there.

        Raises:
            InvalidInputError: an argument is wrong.
            EngineError: it does not start.

        """
        self.about: About = self._answer(About, lambda count: None)

    def generate(self, order: Order, progress: Callable[[int], None] = lambda count: None) -> Epoch:
        """Generate an epoch; `progress` is called with rollouts as they end.

        Raises:
            EngineError: the engine ended.

        """
        with suppress(OSError):  # an engine that has ended is told of by the answer
            self._pipe.send(order)
        done: Epoch = self._answer(Epoch, progress)
        return done

    def _answer(self, kind: type[Any], progress: Callable[[int], None]) -> Any:
        try:
            while isinstance(answer := self._pipe.recv(), int):
                progress(answer)
        except (EOFError, OSError):
            self._process.join(SECONDS_TO_END)
            raise EngineError(self._ended()) from None
        if isinstance(answer, InvalidInputError):
            raise answer
        if isinstance(answer, Failed):
            raise EngineError(answer.why)
        assert isinstance(answer, kind)
        return answer

    def give_up(self, seconds: float) -> None:
        """End an engine that took longer than `seconds`; who waits for its answer gets an EngineError."""
        self._late = seconds
        self.end(signal.SIGKILL)

    def _ended(self) -> str:
        if self._late is not None:
            return f"it was not done within {self._late:g} s"
        code = self._process.exitcode
        how = f"it was ended by signal {-code}" if code is not None and code < 0 else f"it ended with exit code {code}"
        more = " (often: out of memory)" if code == -signal.SIGKILL else ""
        return f"{how}{more}; {reason(Path(self._spec.log), '')}"

    def dismiss(self) -> None:
        """Tell it to end, and do not wait."""
        with suppress(OSError):
            self._pipe.send(None)

    def close(self) -> None:
        """End the process and all that vLLM started below it."""
        self.dismiss()
        self._process.join(SECONDS_TO_END)
        self.end(signal.SIGTERM)
        self._process.join(SECONDS_TO_END)
        self.end(signal.SIGKILL)
        self._process.join()

    def end(self, sign: signal.Signals) -> None:
        """Send a signal to the process, and to all below it: they are a session of their own."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, sign)
        if self._process.is_alive():  # it may not have a session yet
            self._process.kill() if sign == signal.SIGKILL else self._process.terminate()


@contextmanager
def worker(
    spec: EngineSpec, environment: Mapping[str, str], prepare: Prepare | None = None, *, seconds: float | None = None
) -> Iterator[Worker]:
    """An engine that runs for the duration of the block, and not longer than `seconds`; errors as of `Worker.start`."""
    with starting(spec, environment, prepare, seconds=seconds) as made:
        made.start()
        yield made


@contextmanager
def starting(
    spec: EngineSpec, environment: Mapping[str, str], prepare: Prepare | None = None, *, seconds: float | None = None
) -> Iterator[Worker]:
    """As `worker`, but `start`, which waits until the engine is there, is left to the block."""
    with variables({"VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1"), **environment}):
        made = Worker(spec, prepare)
    watch = threading.Timer(seconds or 0.0, made.give_up, [seconds])
    watch.daemon = True
    try:
        if seconds is not None:
            watch.start()
        yield made
    except KeyboardInterrupt:
        made.end(signal.SIGTERM)
        raise
    finally:
        watch.cancel()
        made.close()


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that processes inherit which start meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
