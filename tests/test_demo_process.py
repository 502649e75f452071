"""A side of the demo in its own process. Imports no torch: every test starts a process, which imports this file."""

import os

import pytest

from rolltree.demo.process import Report, SideProcess
from rolltree.errors import RolltreeError


def work_of_three_batches(baton):
    """What a training does, without one."""
    for batch in range(3):
        if not baton.wait():
            return f"stopped at {batch}"
        baton.send(Report([[batch]], batch / 4, batch, None))
    baton.wait()
    return "all done"


def work_that_breaks(baton):
    baton.wait()
    raise ZeroDivisionError("in the other process")


def work_that_dies(baton):
    baton.wait()
    os._exit(3)


def test_a_process_works_only_when_told_to():
    side = SideProcess(work_of_three_batches)
    for _ in range(2):
        side.advance()
    assert side.weights_sha256() is None
    side.stop()
    assert side.completions == [[[0]], [[1]]]
    assert side.rewards == [0.0, 0.25]
    assert side.history == [0, 1]
    assert side.generate_seconds == []
    assert side.weights_sha256() == "stopped at 2"


def test_a_batch_that_was_under_way_when_stopped_is_kept():
    side = SideProcess(work_of_three_batches)
    side.advance()
    side._pipe.send("advance")  # as if Ctrl-C came while waiting for the answer
    side.stop()
    assert side.rewards == [0.0, 0.25]
    assert side.weights_sha256() == "stopped at 2"


@pytest.mark.parametrize(("work", "message"), [(work_that_breaks, "in the other process"), (work_that_dies, "died")])
def test_the_failure_of_a_process_reaches_the_owner(work, message):
    side = SideProcess(work)
    with pytest.raises(RolltreeError, match=message):
        side.advance()
    side.stop()
    assert side.weights_sha256() is None
