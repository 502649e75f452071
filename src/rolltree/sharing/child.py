"""A process that speaks to Ray for an engine: the engine's own process never loads Ray.

Ray ends every process that is connected to a cluster whose head is lost, and brings some thirty threads and 130 MB. So
the engine has a child for it, by a pipe; a child that ends, or hangs, is replaced when the next trip is due. It ends by
itself when the engine is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe

from rolltree.errors import RolltreeError
from rolltree.sharing.message import Reply, Request
from rolltree.sharing.ray_exchange import RayChannel

START_SECONDS = 120.0
"""For a Python process to begin, on a busy machine."""
GRACE_SECONDS = 5.0
"""What a child may take longer than its time-out before it is thought to hang."""
LOOK_SECONDS = 5.0
"""How often a child looks whether its engine is alive: other children of the engine may hold the pipe open."""


class ChildChannel:
    """The way to the exchange `name` of this process's Ray cluster, through a child."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def trade(self, request: Request, timeout: float) -> Reply:
        """See `Channel`."""
        try:
            answer = self._ask(self._pipe or self._start(), request, timeout)
        except BaseException:
            self.close()
            raise
        if isinstance(answer, str):
            raise RolltreeError(answer)
        return answer

    def close(self) -> None:
        """End the child."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None

    def _ask(self, pipe: Connection, request: Request, timeout: float) -> Reply | str:
        pipe.send((request, timeout))
        answer: Reply | str = _received(pipe, timeout + GRACE_SECONDS)
        return answer

    def _start(self) -> Connection:
        self._pipe, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno()), self._name, cluster_address()]
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
            )
        _received(self._pipe, START_SECONDS)
        return self._pipe


def cluster_address() -> str:
    """Return where the cluster is: this process's, else that of RAY_ADDRESS, else the one that Ray finds."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    return os.environ.get("RAY_ADDRESS") or "auto"


def main() -> None:
    """Run as the child: a request in, an answer out, or a sentence where there is none."""
    pipe, parent = Connection(int(sys.argv[1])), os.getppid()
    channel = RayChannel(sys.argv[2], sys.argv[3])
    pipe.send("ready")
    while os.getppid() == parent:
        if not pipe.poll(LOOK_SECONDS):
            continue
        try:
            request, timeout = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Reply | str
        try:
            answer = channel.trade(request, timeout)
        except Exception as error:
            answer = f"{type(error).__name__}: {_first_line(error)}"
        pipe.send(answer)


def _received(pipe: Connection, seconds: float) -> Reply | str:
    if not pipe.poll(seconds):
        raise TimeoutError(f"the process that speaks to Ray gave no answer in {seconds:g} s")
    answer: Reply | str = pipe.recv()
    return answer


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    main()
