"""verl's own sampler, but one that looks twenty times a second: steps of the CPU runs take about a second."""

from __future__ import annotations

from typing import Any

from rolltree.verl.hook import stock_sampler

POLL_SECONDS = 0.05


def sampler(**kwargs: Any) -> Any:
    """Make verl's own sampler for the trainer that asks."""
    stock = stock_sampler(kwargs["refill_fn"].__self__)
    stock.poll_interval = POLL_SECONDS
    return stock
