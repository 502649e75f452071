"""The configuration lines that the pages show compose in this verl, and its options are read."""

from __future__ import annotations

import re

import pytest
from hydra.errors import ConfigCompositionException

from rolltree.verl import VerlOptions
from tests.doc_blocks import PAGES, blocks, prose
from tests.doc_shell import commands
from tests.verl.test_lines import configured

OVERRIDE = re.compile(r"\+?(trainer|actor_rollout_ref|data|algorithm)\.[\w.]+=\S+")


def shown(page: str) -> list[list[str]]:
    """The lines of each command that starts verl's trainer, and each line that stands in the text."""
    shell = [block.text for block in blocks(page) if block.language == "sh" and not block.skipped]
    found = [words for text in shell for words in commands(text) if any("verl.trainer" in word for word in words)]
    return [[word for word in words if OVERRIDE.fullmatch(word)] for words in found] + [
        [code] for code in prose(page) if OVERRIDE.fullmatch(code) and not re.search(r"[A-Z]{3}|\.\.\.", code)
    ]


LINES = [(page, lines) for page in PAGES for lines in shown(page)]


@pytest.mark.parametrize(("page", "lines"), LINES)
def test_lines_compose(page: str, lines: list[str]) -> None:
    VerlOptions.read(configured(*lines).trainer.v1.sampler.get("sampler_kwargs"))


def test_lines_are_found() -> None:
    assert {"README.md", "docs/verl.md"} <= {page for page, _ in LINES}
    assert LINES[0][1][1:] == ["trainer.v1.sampler.custom_sampler.name=sampler"]


def test_a_planted_line_is_found() -> None:
    with pytest.raises(ConfigCompositionException):
        configured("trainer.v1.sampler.custom_samplers.name=sampler")
