"""A side of the race in a process of its own, that runs when told to and holds still otherwise.

One process a training, because libgomp stops spinning at barriers when one process owns more OpenMP threads than
there are cores: two trainings in one process cost small models a factor of three, and the plain side, which makes
more steps, the most. Processes also keep the random number generators apart.

Protocol, over one pipe: the owner sends "advance" and gets a `Report`, or sends "stop" and gets, after the reports that
are still due, a `Final`. Invariant: the process computes only between "advance" and its answer.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from rolltree.errors import RolltreeError

if TYPE_CHECKING:
    from rolltree.trl.history import RolloutRecord


@dataclass(frozen=True, slots=True)
class Report:
    """One batch."""

    completions: list[list[int]]
    reward: float
    record: RolloutRecord
    generate_seconds: float | None


@dataclass(frozen=True, slots=True)
class Final:
    """The end of a training: the hash of its weights, or the traceback of what ended it."""

    weights_sha256: str | None = None
    error: str | None = None


class Baton:
    """The process's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def wait(self) -> bool:
        """Hold still until told to go on; False to stop, also when the owner is gone."""
        try:
            return bool(self._pipe.recv() == "advance")
        except EOFError:
            return False

    def send(self, message: Report | Final) -> None:
        """Answer the owner."""
        self._pipe.send(message)


Work = Callable[[Baton], str]


class SideProcess:
    """Starts `work(baton)` in a new process and drives it; see `rolltree.demo.race.Side`."""

    def __init__(self, work: Work) -> None:
        self.completions: list[list[list[int]]] = []
        self.rewards: list[float] = []
        self.history: list[RolloutRecord] = []
        self.generate_seconds: list[float] = []
        self._final: Final | None = None
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def advance(self) -> None:
        """Roll out the next batch and train on it; RolltreeError if the process failed."""
        self._pipe.send("advance")
        message = self._receive()
        if isinstance(message, Final):
            self._final = message
            raise RolltreeError(f"A training of the demo ended early.\n{message.error or ''}")
        self._keep(message)

    def stop(self) -> None:
        """End the training after the batch that it is in."""
        if self._final is None:
            try:
                self._pipe.send("stop")
                while isinstance(message := self._receive(), Report):
                    self._keep(message)
                self._final = message
            except BrokenPipeError:
                self._final = Final()
        self._pipe.close()
        self._process.join()

    def weights_sha256(self) -> str | None:
        """Hash of the weights at the end; None before, and after a failure."""
        return self._final.weights_sha256 if self._final else None

    def _receive(self) -> Report | Final:
        try:
            message: Report | Final = self._pipe.recv()
        except EOFError:
            message = Final(error="The process died without a word: out of memory?")
        return message

    def _keep(self, report: Report) -> None:
        self.completions.append(report.completions)
        self.rewards.append(report.reward)
        self.history.append(report.record)
        if report.generate_seconds is not None:
            self.generate_seconds.append(report.generate_seconds)


def _serve(work: Work, pipe: Connection) -> None:
    """Main function of the process. Ctrl-C is the owner's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    baton = Baton(pipe)
    try:
        final = Final(weights_sha256=work(baton))
    except BaseException:
        final = Final(error=traceback.format_exc())
    try:
        baton.send(final)
    except BrokenPipeError:
        return  # nobody is left to read it
