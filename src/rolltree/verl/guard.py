"""Around what rolltree adds to a training: a failure of it costs what it would have given, never the training.

Whoever asked for rolltree is told: the first failure of each guard is logged, with what is missing from now on, and all
are counted. Interrupts, cancellations and the ends of probed agent loops are none of its business and pass.
"""

from __future__ import annotations

import logging

from rolltree.runlog import SideChannel

log = logging.getLogger("rolltree.verl")


class Guard(SideChannel):
    """A side channel of a training, that says so with the trace of its first failure.

    Args:
        what: what goes without when it fails, for the log.

    """

    def _tell(self, error: Exception) -> None:
        log.warning("The training goes on without %s; counted from now on, logged once.", self.what, exc_info=error)
