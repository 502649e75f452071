"""Around what rolltree adds to a training: a failure of it costs what it would have given, never the training.

Whoever asked for rolltree is told: the first failure of each guard is logged, with what is missing from now on, and all
are counted. Interrupts, cancellations and the ends of probed agent loops are none of its business and pass.
"""

from __future__ import annotations

import logging
from types import TracebackType

log = logging.getLogger("rolltree.verl")


class Guard:
    """A context manager that keeps exceptions in, and is as cheap as a `try`.

    Args:
        loss: what goes without when it fails, for the log.
    """

    def __init__(self, loss: str) -> None:
        self.loss = loss
        self.failures = 0
        """Exceptions kept in."""

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failures += 1
        if self.failures == 1:
            log.warning("The training goes on without %s; counted from now on, logged once.", self.loss, exc_info=error)
        return True
