"""These tests need verl and vLLM's CPU build (`make verl-setup`); elsewhere their modules are skipped."""

from __future__ import annotations

from importlib import util

import pytest

collect_ignore_glob = [] if util.find_spec("verl") else ["test_*.py"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> object:
    from tests.verl.runs import Runs

    return Runs(tmp_path_factory.mktemp("verl"), {})
