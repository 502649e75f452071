"""Launches a native function in the stream of a CUDA device, behind what was launched before; no Python runs in it.

By `cuLaunchHostFunc` of CUDA's driver library, which is there wherever a device is: CUresult cuLaunchHostFunc(CUstream,
CUhostFn, void*), CUDA 10 and newer. The stream goes on when the function has returned; it must not call CUDA. No test
has a device; on an H200 it ran in the GPU benchmark (benchmarks/gpu_vllm.json).
"""

from __future__ import annotations

import ctypes
from typing import Any

from rolltree.errors import RolltreeError

LIBRARY, FUNCTION = "libcuda.so.1", "cuLaunchHostFunc"


def refusal(device_type: str) -> str:
    """Return on what kind of device no function can be launched; empty where one can."""
    if device_type != "cuda":
        return f"on a device of type {device_type!r}"
    try:
        _function()
    except (OSError, AttributeError) as error:
        return f"without {FUNCTION} of {LIBRARY} ({error})"
    return ""


def _function() -> Any:
    function = getattr(ctypes.CDLL(LIBRARY), FUNCTION)
    function.argtypes, function.restype = (ctypes.c_void_p,) * 3, ctypes.c_int
    return function


class HostFunctions:
    """The stream that is torch's current one at each launch: the model runner's.

    Args:
        device: a CUDA device of torch.

    """

    def __init__(self, device: Any) -> None:
        self._device, self._launch = device, _function()
        self._stream: Any = None

    def launch(self, entry: tuple[int, int]) -> None:
        """Launch a function, void (void*), with its argument; addresses of both.

        Raises:
            RolltreeError: the driver refuses; nothing was launched.

        """
        import torch

        self._stream = torch.cuda.current_stream(self._device)
        if code := self._launch(self._stream.cuda_stream, *entry):
            raise RolltreeError(f"{FUNCTION} returned {code}: the stream takes no host function")

    def wait(self) -> None:
        """Return when all that was launched has run."""
        if self._stream is not None:
            self._stream.synchronize()
