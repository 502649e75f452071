"""A stand-in for a device's stream, on a CPU where torch works at once: a thread that runs what is launched, in order.

The core's native call and what the device does with its drafts run there while the engine's Python goes on. What a
device would do behind them waits for them: the engine joins the thread where its next step begins to change the
runner's arrays, which is where a device's stream would come to that. The thread works beside the engine; or, `late`,
only when the engine has come to where it joins, so that it learns nothing before.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_ENTER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ThreadStream:
    """In the place of `host_function.HostFunctions`."""

    late = False
    latest: ThreadStream
    launched = 0

    def __init__(self, device: Any) -> None:
        self._work: queue.Queue[Callable[[], object]] = queue.Queue()
        self._held: list[Callable[[], object]] = []
        threading.Thread(target=self._run, daemon=True).start()
        type(self).latest = self

    def launch(self, entry: tuple[int, int]) -> None:
        """Launch a function by its address, as a device would: without Python's lock."""
        function, argument = entry
        type(self).launched += 1
        self.then(lambda: _ENTER(function)(argument))

    def then(self, work: Callable[[], object]) -> None:
        """Put work of the device behind what was launched."""
        if self.late:
            self._held.append(work)
        else:
            self._work.put(work)

    def wait(self) -> None:
        """Join."""
        held, self._held = self._held, []
        for work in held:
            self._work.put(work)
        self._work.join()

    def _run(self) -> None:
        while True:
            self._work.get()()
            self._work.task_done()


@contextmanager
def stream_on_cpu(*, late: bool = False) -> Iterator[type[ThreadStream]]:
    """Let engines of this process draft with `wait: stream`."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from rolltree.vllm import host_function
    from rolltree.vllm.stream_speculator import StreamSpeculator
    from rolltree.vllm.stream_turns import StreamTurns

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadStream, "late", late)
        patch.setattr(ThreadStream, "launched", 0)
        patch.setattr(host_function, "refusal", lambda device_type: "")
        patch.setattr(host_function, "HostFunctions", ThreadStream)
        patch.setattr(StreamTurns, "place", _in_the_stream(StreamTurns.place))
        patch.setattr(StreamSpeculator, "propose", _remembering(StreamSpeculator.propose))
        patch.setattr(GPUModelRunner, "finish_requests", _joining(GPUModelRunner.finish_requests))
        yield ThreadStream


def _in_the_stream(original: Any) -> Any:
    def place(self: Any, index: int | None, last: Any) -> Any:
        self._stream.then(lambda: original(self, index, last))
        return self.tokens[: len(last)]

    return place


def _remembering(original: Any) -> Any:
    """Drafts are scattered by the runner when they are not there yet: where they go is remembered for the join."""

    def propose(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, *args, **kwargs)
        batch = args[0] if args else kwargs["input_batch"]
        if not kwargs.get("dummy_run"):
            self.scattered = batch.idx_mapping[: len(out)].clone(), out
            if batch.has_structured_output_reqs:  # the runner reads them at once
                self._turns._stream.wait()
        return out

    return propose


def _joining(original: Any) -> Any:
    """The first of what changes the runner's arrays in a step."""

    def finish_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        speculator = getattr(self, "speculator", None)
        if getattr(speculator, "scattered", None) is not None:
            speculator._turns._stream.wait()
            rows, drafts = speculator.scattered
            self.req_states.draft_tokens[rows] = drafts
            speculator.scattered = None
        return original(self, *args, **kwargs)

    return finish_requests
