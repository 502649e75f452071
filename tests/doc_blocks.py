"""Checks what the documentation shows: fenced blocks, and commands and calls in the running text.

A fence says what is done with its block: nothing after the language, and a Python block is run (blocks of a page share
their names), a shell block's commands are parsed, JSON and YAML are read. ```python check: REASON: names and keywords
are looked up, nothing runs. ```LANGUAGE skip: REASON: it is left alone. Nothing here runs a command.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tests.doc_python import Names, python_faults
from tests.doc_shell import shell_faults

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w+)[ ]?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    note: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def skipped(self) -> bool:
        return self.note.startswith("skip: ")


def page_text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    text = page_text(page) if text is None else text
    return [Block(page, text.count("\n", 0, m.start()) + 2, *m.groups()) for m in FENCE.finditer(text)]


def prose(page: str, text: str | None = None) -> list[str]:
    """The inline code of a page, outside its blocks."""
    found = INLINE.findall(FENCE.sub("", page_text(page) if text is None else text))
    return [re.sub(r"\s+", " ", code) for code in found]


def faults(block: Block, names: Names | None = None) -> list[str]:
    """What is wrong with a block, without running it."""
    if block.skipped:
        return []
    if block.note and not re.match(r"check: \w", block.note):
        return [f"{block.place}: the fence says {block.note!r}; say 'check: REASON' or 'skip: REASON'"]
    if block.language == "python":
        found = python_faults(block.text, names)
    elif block.language in CHECKS:
        found = CHECKS[block.language](block.text)
    else:
        found = [f"a block of {block.language!r}, which nothing checks"]
    return [f"{block.place}: {fault}" for fault in found]


def json_faults(text: str) -> list[str]:
    try:
        json.loads(text)
    except ValueError as error:
        return [f"not JSON: {error}"]
    return []


def yaml_faults(text: str) -> list[str]:
    import yaml

    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    return []


CHECKS = {"sh": shell_faults, "json": json_faults, "yaml": yaml_faults}
