"""`rolltree report`: figures and a self-contained page from a run's metrics. Reads files, never live objects."""

from rolltree.report.report import write_report

__all__ = ["write_report"]
