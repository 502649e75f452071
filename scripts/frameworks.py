"""Writes the table of docs/frameworks.md from `rolltree.cli.frameworks`, which `rolltree doctor --for` reads as well.

Usage: python scripts/frameworks.py [--check]   (--check: exit 1 when the page is not up to date)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rolltree.cli.frameworks import FRAMEWORKS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "frameworks.md"
BEGIN, END = "<!-- begin frameworks -->\n", "<!-- end frameworks -->\n"
COLUMNS = ("trainer", "version read", "vLLM it installs", "on by", "inferred", "missing", "run on a CPU", "doctor")


def main() -> int:
    """Rewrite, or check, the part of the page between the marks."""
    before, rest = PAGE.read_text().split(BEGIN)
    text = before + BEGIN + "".join(rows()) + END + rest.split(END)[1]
    if "--check" in sys.argv[1:]:
        return int(text != PAGE.read_text())
    PAGE.write_text(text)
    return 0


def rows() -> Iterator[str]:
    """The lines of the table."""
    yield from (f"| {' | '.join(cells)} |\n" for cells in (COLUMNS, ["---"] * len(COLUMNS)))
    for key, one in FRAMEWORKS.items():
        link = f"[{one.name}](#{one.name.lower()})"
        by = "switch, own setting" if one.own else "switch"
        cells = (link, f"{one.version}, {one.source}", one.engine, by, one.inferred, one.missing)
        yield f"| {' | '.join(cells)} | {one.checked or '- (only read)'} | `--for {key}` |\n"


if __name__ == "__main__":
    sys.exit(main())
