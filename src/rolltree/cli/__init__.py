"""The `rolltree` command. Commands import what they need when they run; `--help` is quick.

typer and rich are the extra `cli`: who only drafts, inside a vLLM worker say, has neither.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; exit code 2 and a sentence where typer and rich are not installed."""
    try:
        from rolltree.cli.app import main as run
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in ("typer", "rich"):
            raise
        sys.stderr.write(f'rolltree: the command line needs {name}: pip install "rolltree[cli]"\n')
        sys.exit(2)
    run()
