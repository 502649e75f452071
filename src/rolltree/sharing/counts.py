"""What sharing counts, see `rolltree.metrics`."""

from __future__ import annotations

from dataclasses import dataclass

from rolltree.metrics import DraftStats, count


@dataclass(slots=True, kw_only=True)
class SharingCounts(DraftStats):
    """Sums since the engine started."""

    shared_sent: int = count("Tokens of this engine that the exchange has taken")
    shared_received: int = count("Tokens of other engines that were taken in")
    shared_rollouts: int = count("Finished rollouts of other engines that were taken in")
    shared_dropped: int = count("Finished rollouts that were not told to others, because too many waited")
    shared_refused: int = count("Pieces of text, or whole answers, of other engines that were refused")
    shared_failures: int = count("Times that the exchange could not be reached")
    shared_bytes: int = count("Bytes to and from the exchange")
