"""These tests need verl and vLLM's CPU build (`make verl-setup`); elsewhere their modules are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import util

import pytest

collect_ignore_glob = [] if util.find_spec("verl") else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "trainings(*names): the trainings of tests/verl/runs.py that a test looks at")
    config.addinivalue_line("markers", "slow: trainings that only `make verl-test-all` runs, before a release")


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The trainings; those of all selected tests are started at once."""
    from tests.verl.runs import Runs

    marks = [mark for item in request.session.items for mark in item.iter_markers("trainings")]
    made = Runs(tmp_path_factory.mktemp("verl"), {name for mark in marks for name in mark.args})
    yield made
    made.cancel()
