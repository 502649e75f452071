"""`rolltree demo`: a real GRPO run on this computer, with and without."""

from __future__ import annotations


def run() -> None:
    """Run GRPO on a small reasoning task twice, plainly and with rolltree, and compare."""
