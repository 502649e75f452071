"""What the V2 runner's arrays hold of each row after a step: how many tokens were sampled, how long it is, its text.

The runner keeps them on the device. The text array is pinned host memory that the device writes to (UVA), so it is read
in place; the two short arrays are copied to pinned memory. On a GPU that is a wait for the stream: text of the step
before would cost more than it (docs/vllm.md).
"""

from __future__ import annotations

from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.types import Int32Array, Int64Array


class DeviceRows:
    """Reads the arrays of one runner.

    Args:
        states: the runner's `RequestState`.
        device: where it runs.
        rows: requests of a step at most.

    Raises:
        InvalidInputError: the text is where the host cannot read it.

    """

    def __init__(self, states: Any, device: Any, rows: int) -> None:
        import torch

        self._states = states
        self.text: Int32Array = _host_view(states.all_token_ids)
        """Shape [slots, max_model_len]: prompt and output of each slot; complete after `read`."""
        self._event: Any = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._counts = torch.zeros(3, rows, dtype=torch.int32, pin_memory=self._event is not None)

    def read(
        self, num_sampled: Any, idx_mapping: Any, rows: int, num_rejected: Any = None
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Return how many tokens each row got in this step, how long it is, and, where they are given, how many of its
        places were rejected: int64 [rows] each. Waits for them."""
        self._counts[0, :rows].copy_(num_sampled[:rows], non_blocking=True)
        self._counts[1, :rows].copy_(self._states.total_len.gpu[idx_mapping[:rows]], non_blocking=True)
        if num_rejected is not None:
            self._counts[2, :rows].copy_(num_rejected[:rows], non_blocking=True)
        if self._event is not None:
            self._event.record()
            self._event.synchronize()
        sampled, lengths, rejected = self._counts[:, :rows].numpy().astype("int64")
        return sampled, lengths, rejected


def _host_view(tokens: Any) -> Int32Array:
    buffer = getattr(tokens, "_uva_buf", None)
    if buffer is not None:
        return buffer.np  # type: ignore[no-any-return]
    if tokens.gpu.device.type == "cpu":
        return tokens.gpu.numpy()  # type: ignore[no-any-return]
    fix = "Set VLLM_USE_V2_MODEL_RUNNER=0: the V1 runner keeps the text on the host."
    raise InvalidInputError("vllm device", str(tokens.gpu.device), "one with pinned memory that it can write to", fix)
