"""The device's side of a step that is done in the stream: what the core reads there, its launch, its drafts' way back.

All of it is put into the stream; the host waits for none of it. The core reads and writes pinned memory, a row of it
for each turn, which the stream copies to and from. A row is used again only when its turn is done, and what the device
gets of it is copied behind that turn and before the next that has the row: the order of the stream is enough.
"""

from __future__ import annotations

from typing import Any

from rolltree.serving.streamed import TURNS


class StreamTurns:
    """Buffers of one model runner.

    Args:
        states: the runner's `RequestState`.
        device: where it runs.
        rows: requests of a step at most.
        width: draft tokens of a request at most.
        stream: launches functions, see `host_function.HostFunctions`.

    """

    def __init__(self, states: Any, device: Any, rows: int, width: int, stream: Any) -> None:
        import torch

        self._states, self._rows, self._width, self._stream = states, rows, width, stream
        self._host = torch.zeros(TURNS, rows * (3 + width), dtype=torch.int32, pin_memory=device.type == "cuda")
        self.buffers = self._host.numpy()
        """int32 [TURNS, rows (3 + width)], see `rolltree._native.Step`."""
        self._packed = torch.zeros(rows, 1 + width, dtype=torch.int32, device=device)
        self._columns = torch.arange(width, device=device)[None, :]
        self.tokens = torch.zeros(rows, width, dtype=torch.int64, device=device)
        """int64 [rows, width] on the device: drafts of the latest step."""

    def launch(self, index: int, entry: tuple[int, int], num_sampled: Any, idx_mapping: Any) -> None:
        """Bring what was sampled to the turn's buffer, and launch the turn behind it.

        Args:
            index: of the turn's buffer.
            entry: addresses of its function and argument.
            num_sampled: int32 [rows or more] on the device, tokens of each row in this step.
            idx_mapping: [rows] on the device, slot of each row.

        """
        n, buffer = len(idx_mapping), self._host[index]
        buffer[:n].copy_(num_sampled[:n], non_blocking=True)
        lengths = self._states.total_len.gpu[idx_mapping]
        buffer[self._rows : self._rows + n].copy_(lengths, non_blocking=True)
        self._stream.launch(entry)

    def place(self, index: int | None, last: Any) -> Any:
        """Return the drafts, int64 [rows, width] on the device, and each row's last token where there is none.

        Args:
            index: of the buffer of the turn that was launched; None: there are no drafts.
            last: [rows] on the device, last sampled token of each row.

        """
        import torch

        n = len(last)
        out, last = self.tokens[:n], last[:, None].to(self.tokens.dtype)
        if index is None:
            out.copy_(last.expand(-1, self._width))
            return out
        packed = self._packed[:n]
        packed.copy_(self._host[index, 2 * self._rows :].view(-1, 1 + self._width)[:n], non_blocking=True)
        torch.where(self._columns >= packed[:, :1], last, packed[:, 1:], out=out)
        return out
