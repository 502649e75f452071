"""A training on the CPU that cannot end is ended, with the reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.verl_on_cpu import run
from tests.verl_on_cpu.run import RunError


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.communicate()


def test_processes_lost_for_want_of_memory_end_the_run(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.01)
    log = tmp_path / "output.log"
    log.write_text("(raylet) 5 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed\n")
    with pytest.raises(RunError, match=r"too little memory .*output\.log"):
        run._wait(sleeper, log, 600)


def test_the_time_is_bounded_and_a_status_returned(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_text("all is well\n")
    assert run._wait(sleeper, log, 0.01) is None
    assert sleeper.stdin is not None
    sleeper.stdin.close()  # it ends with an EOFError
    assert run._wait(sleeper, log, 600) == 1
