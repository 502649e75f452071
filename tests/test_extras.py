"""What pyproject.toml asks for: numpy alone, and an extra for each package that the layer table allows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_layers import ROWS

tomllib = pytest.importorskip("tomllib", reason="older Pythons cannot read pyproject.toml")
ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
BROUGHT = {"omegaconf": "verl", "prometheus_client": "vllm", "tqdm": "vllm"}
"""Packages that a host cannot be without, by the extra of the host."""
PEERS = {"arctic_inference"}
"""Compared with where they are installed; `make bench-peer` builds it."""


def named(requirements: list[str]) -> set[str]:
    """The distributions of a list of requirements."""
    return {re.split(r"[\[<>=!~ ;]", text)[0] for text in requirements}


def test_the_package_needs_numpy_alone() -> None:
    assert named(PROJECT["dependencies"]) == {"numpy"}


def test_each_package_of_the_layer_table_is_in_an_extra() -> None:
    allowed = frozenset().union(*(row.third_party | row.lazy_third_party for row in ROWS)) - {"numpy"}
    missing = allowed - named([text for group in EXTRAS.values() for text in group]) - PEERS - set(BROUGHT)
    assert missing == set()
    assert set(BROUGHT.values()) <= set(EXTRAS)
    assert set(BROUGHT) | PEERS <= allowed, "a name that the table no longer has"


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_is_named_to_those_who_need_it(extra: str) -> None:
    """In a message or a page."""
    texts = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    groups = [group.split(",") for path in texts for group in re.findall(r"\[([a-z,]+)\]['\"]", path.read_text())]
    assert any(extra in group for group in groups)


def test_extras_refer_to_extras_that_exist() -> None:
    inner = [name for group in EXTRAS.values() for text in group for name in re.findall(r"^rolltree\[(.*)\]$", text)]
    assert set(inner) <= set(EXTRAS)
    assert inner
