"""Lets the suite run where optional frameworks or the repository's benchmarks are missing, as with the core alone.

A test module whose import fails for want of one of them is skipped and named in the summary; any other import error
stays an error. Seeds that the operating system would draw are fixed in each test.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Generator

import pytest

FRAMEWORKS = {
    "benchmarks",
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "safetensors",
    "matplotlib",
    "scipy",
}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the collection error of a module that needs a missing framework into a skip."""
    report = yield
    if report.outcome == "failed" and isinstance(collector, pytest.Module):
        missing = re.search(r"No module named '(\w+)", str(report.longrepr))
        if missing and missing[1] in FRAMEWORKS:
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 1, f"Skipped: needs {missing[1]}")
    return report


@pytest.fixture(autouse=True)
def drawn_seeds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without a seed draws the same one in every run: no verdict hangs on it."""
    params = sys.modules.get("rolltree.sampling.params")
    if params is not None:
        monkeypatch.setattr(params.secrets, "randbits", random.Random(request.node.nodeid).getrandbits)
