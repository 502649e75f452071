"""Makes rolltree's warnings seen in verl's processes, whatever other libraries do to the root logger.

Importing verl's vLLM server, which the trainer does once the sampler is made, leaves the root logger and its handler at
ERROR; verl keeps its own logger out of that (`configure_verl_logging`). What the root logger still shows is left to it.
"""

from __future__ import annotations

import logging
import sys

FORMAT = "%(levelname)s:%(asctime)s:%(message)s"
"""verl's."""


class LastWord(logging.Handler):
    """Writes to stderr what no handler of the root logger takes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        if any(handler.level <= record.levelno for handler in logging.getLogger().handlers):
            return
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # a closed stream
            self.handleError(record)


def speak_up() -> None:
    """Show rolltree's warnings from now on; a second call, or a level that the user set, changes nothing."""
    logger = logging.getLogger("rolltree")
    if not any(isinstance(handler, LastWord) for handler in logger.handlers):
        handler = LastWord()
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
