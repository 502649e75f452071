"""Finds the settings that the documentation shows: dictionaries in Python calls, JSON in shell commands.

Yields each with the name that it is given under; what the values mean is for the tests.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tests.doc_blocks import blocks, page_text, prose
from tests.doc_shell import commands

NAMES = ("speculative_config", "additional_config", "extra_args", "vllm_xargs")
Setting = tuple[str, dict[str, Any]]


def settings(page: str, text: str | None = None) -> list[Setting]:
    """Every setting of a page under one of `NAMES`, from its blocks and from the code in its text."""
    text = page_text(page) if text is None else text
    found: list[Setting] = []
    for block in blocks(page, text):
        if not block.skipped:
            found += in_shell(block.text) if block.language == "sh" else in_python(block.text)
    for code in prose(page, text):
        found += in_shell(code) if code.startswith(("vllm ", "curl ")) else in_python(code)
    return found


def in_python(text: str) -> Iterator[Setting]:
    """Keyword arguments that are dictionaries of plain values."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    pairs = [(node.arg, node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs.append((node.targets[0].id, node.value))
    for name, value in pairs:
        if name in NAMES and isinstance(value, ast.Dict) and "..." not in ast.unparse(value):
            yield name, ast.literal_eval(value)


def in_shell(text: str) -> Iterator[Setting]:
    """JSON after an option of one of the names, or inside a document that is sent."""
    for words in commands(text):
        for option, word in pairwise(words):
            if word.startswith("{"):
                value = json.loads(word)
                name = option.lstrip("-").replace("-", "_")
                yield from [(name, value)] if name in NAMES else [(n, value[n]) for n in NAMES if n in value]
