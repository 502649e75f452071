"""Lets the suite run where optional frameworks or the repository's benchmarks are missing, as with the core alone.

A test module whose import fails for want of one of them is skipped and named in the summary; any other import error
stays an error.
"""

from __future__ import annotations

import re
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
