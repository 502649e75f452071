"""What a check of an installation found: the lines of `rolltree doctor`, which each host's own checks yield."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    name: str
    state: str
    """ok, untested (a version that no test ran with), missing, or broken."""
    found: str
    fix: str = ""
    """A command or a sentence; empty when all is well."""
