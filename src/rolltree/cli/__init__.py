"""The `rolltree` command. Commands import what they need when they run; `--help` is quick."""

from __future__ import annotations

from rolltree.cli.app import main

__all__ = ["main"]
