"""The key/value cache: one row of fixed length for each running request, all layers in one tensor.

Does not know requests, lengths or drafts: the engine rolls back by not advancing a row's length. Everything
past a row's length is unspecified but finite (an attention weight of zero times NaN would be NaN), so failed
rows are zeroed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rolltree.errors import CapacityError


class SlotCache:
    """Keys and values, shape [layers, 2, slots * length, kv_heads * head_dim]."""

    def __init__(
        self, *, layers: int, slots: int, length: int, kv_heads: int, head_dim: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.slots, self.length, self.kv_heads, self.head_dim = slots, length, kv_heads, head_dim
        shape = (layers, 2, slots * length, kv_heads * head_dim)
        size = layers * 2 * slots * length * kv_heads * head_dim * dtype.itemsize
        try:
            self.data = torch.zeros(shape, dtype=dtype, device=device)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise CapacityError(
                f"engine.slots x engine.max_length = {slots} x {length} needs {size:,} bytes of key/value"
                f" cache on {device} ({error}). Lower engine.slots or engine.max_length."
            ) from error
        self._layers = [(layer[0], layer[1]) for layer in self.data]
        self._viewed: tuple[slice, int] | None = None
        self._views: list[tuple[Tensor, Tensor]] = []

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.data.numel() * self.data.element_size()

    def write(self, layer: int, at: Tensor, key: Tensor, value: Tensor) -> None:
        """Store packed `key` and `value` [1, kv_heads, N, head_dim] at flat places `at` [N] (row * length +
        column).
        """
        n, kept = at.numel(), self._layers[layer]
        for store, new in zip(kept, (key, value), strict=True):
            store.index_copy_(0, at, new.transpose(1, 2).reshape(n, -1).to(store.dtype))

    def read(self, layer: int, rows: slice | Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `rows`, each [B, kv_heads, width, head_dim]; views when `rows` is a slice."""
        if isinstance(rows, Tensor):
            key, value = (self._rows(store, rows, width) for store in self._layers[layer])
            return key, value
        if self._viewed != (rows, width):  # the same for many steps: making views costs more than small attention
            self._viewed = (rows, width)
            self._views = [
                (self._rows(key, rows, width), self._rows(value, rows, width)) for key, value in self._layers
            ]
        return self._views[layer]

    def _rows(self, store: Tensor, rows: slice | Tensor, width: int) -> Tensor:
        grid = store.view(self.slots, self.length, self.kv_heads, self.head_dim)
        return grid[:, :width][rows].transpose(1, 2)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy flat places `source` to `target`, both [M], in every layer (accepted tree paths, shared
        prefixes).
        """
        self.data.index_copy_(2, target, self.data.index_select(2, source))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of a row over another row."""
        a, b = source * self.length, target * self.length
        self.data[:, :, b : b + length] = self.data[:, :, a : a + length]

    def clear(self, at: Tensor) -> None:
        """Zero the flat places `at` [M]."""
        self.data.index_fill_(2, at, 0.0)

    def clear_row(self, row: int) -> None:
        """Zero a whole row."""
        self.data[:, :, row * self.length : (row + 1) * self.length] = 0.0
