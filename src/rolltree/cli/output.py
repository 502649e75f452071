"""How commands speak: a card for a person on stderr or a terminal, one JSON document as the last line of stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

FILE_WIDTH = 132


def console(json_output: bool) -> Console:
    """Return where a person reads: stdout, or stderr when stdout carries JSON."""
    screen = Console(stderr=json_output)
    return screen if screen.is_terminal else Console(stderr=json_output, width=FILE_WIDTH)


def finish(document: dict[str, object], *, json_output: bool, out: Path | None) -> None:
    """Write the document to `out`, and as the last line of stdout when asked."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    if json_output:
        print(json.dumps(document))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a rich table; the first column is text, the others are numbers."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*[format_cell(cell) for cell in row])
    return made


def format_cell(value: object) -> str:
    """Return three significant digits for numbers, a dash for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
