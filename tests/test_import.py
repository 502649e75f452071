"""Importing rolltree, or its command line, loads no framework; the public names resolve when first used."""

from __future__ import annotations

import importlib.util
import json
import re
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


@pytest.mark.parametrize(
    "code",
    [
        "from rolltree import RolloutCache, TreeDrafter\nd = TreeDrafter(RolloutCache())\nd.close(d.open([1]))",
        "import rolltree.vllm.proposer, rolltree.serving.load",
        "import rolltree.verl.marks, rolltree.verl.router",
    ],
)
def test_the_store_is_loaded_by_those_who_have_one(code: str) -> None:
    """A drafter inside a vLLM worker needs neither the store nor SQLite."""
    told = [f"{code}\nimport sys\nfor name in ('sqlite3', 'rolltree.store'): sys.modules.setdefault(name, None)"]
    told.append("assert sys.modules['sqlite3'] is sys.modules['rolltree.store'] is None, sorted(sys.modules)")
    subprocess.run([sys.executable, "-c", "\n".join(told)], check=True)


ALONE = """
import sys

class NumpyAlone:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, "numpy", "rolltree"}:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

sys.meta_path.insert(0, NumpyAlone())
"""
"""Nothing can be imported but the standard library, numpy and rolltree."""


def run_alone(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where nothing but numpy can be imported."""
    return subprocess.run([sys.executable, "-c", ALONE + code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "from rolltree import TreeDrafter\nd = TreeDrafter()\nd.cache.add([1, 2], [3, 4])\nassert d.open([1, 2]) >= 0",
        "from rolltree import RolloutStore, RolloutCache, CostModel",
        "import rolltree.vllm, rolltree.vllm.plugin, rolltree.serving",
        "import rolltree.verl",
    ],
)
def test_numpy_is_enough(code: str) -> None:
    """A drafter, the store, and what a host's process imports of us work without any other package."""
    done = run_alone(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_the_command_without_its_packages_is_a_sentence(missing: str) -> None:
    """Exit code 2, one line, the extra."""
    code = f"import sys; sys.modules[{missing!r}] = None; from rolltree.cli import main; main()"
    alone = run_alone("from rolltree.cli import main; main()")
    for done in (alone, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)):
        assert done.returncode == 2, done.stderr
        assert re.fullmatch(
            r'rolltree: the command line needs (typer|rich): pip install "rolltree\[cli\]"\n', done.stderr
        )
    assert f"needs {missing}" in done.stderr


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
