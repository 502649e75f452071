"""Importing rolltree, or its command line, loads no framework; the public names resolve when first used."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

import rolltree

FRAMEWORKS = {"torch", "transformers", "trl", "datasets", "vllm", "ray", "verl", "matplotlib"}
NEEDS = {"Engine": "torch", "EngineConfig": "torch", "Request": "torch", "Result": "torch", "SamplingParams": "torch"}


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running `code`."""
    report = "import json, sys; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import rolltree",
        "from rolltree import RolloutCache, TreeDrafter, CostModel, CacheConfig, DraftConfig",
        "import rolltree.cli",
    ],
)
def test_import_loads_no_framework(code: str) -> None:
    """None of the frameworks is imported, although they may be installed."""
    assert loaded_after(code) & FRAMEWORKS == set()


def test_import_of_the_package_alone_loads_no_core() -> None:
    """`import rolltree` by itself loads neither numpy nor the native core."""
    assert loaded_after("import rolltree") & {"numpy", "typer", "rich"} == set()


def test_a_framework_would_be_seen() -> None:
    """The probe reports what was imported."""
    assert "json" in loaded_after("import json")


@pytest.mark.parametrize("name", rolltree.__all__)
def test_public_name_resolves(name: str) -> None:
    """Every name of `__all__` can be had, given the package that it needs."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    assert getattr(rolltree, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as on any module."""
    with pytest.raises(AttributeError, match="RolloutCash"):
        _ = rolltree.RolloutCash
