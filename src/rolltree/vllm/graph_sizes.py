"""Sizes of steps that CUDA graphs are captured for: vLLM's own list ends at 512 tokens, where drafts only begin."""

from __future__ import annotations

MOST_TOKENS = 4096
"""A longer step computes for so long that launching its kernels one by one costs nothing."""
_USUAL = 512
"""vLLM's own sizes end here: 1, 2, 4, by 8 up to 256, by 16 from there."""


def capture_sizes(rows: int, places: int, budget: int) -> list[int]:
    """Return the sizes in tokens, in rising order: vLLM's own, and from there on in steps of an eighth at most.

    Args:
        rows: requests in a batch at most.
        places: draft tokens of a request at most.
        budget: tokens of a step at most.

    """
    most = min(max(rows * (1 + places), min(2 * rows, _USUAL)), budget, MOST_TOKENS)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, _USUAL + 1, 16)]
    while sizes[-1] < most:
        sizes.append(sizes[-1] + 2 ** (sizes[-1].bit_length() - 4))
    return sorted({size for size in sizes if size < most} | {most})
