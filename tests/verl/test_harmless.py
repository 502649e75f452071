"""rolltree's part of a step fails in every way there is: the trainer gets its batch, and is told once."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rolltree.errors import InvalidInputError
from rolltree.verl import hook
from rolltree.verl.hook import Sampler
from rolltree.verl.options import VerlOptions
from rolltree.verl.worker import MarkingWorker

BATCH, METRICS = object(), {"verl/metric": 1.0}


class Wrapped:
    """verl's sampler, as far as it samples."""

    poll_interval = 2.0

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[object, dict[str, float]]:
        return BATCH, dict(METRICS)


class Ahead:
    """Run-ahead that works."""

    def __init__(self, *args: object) -> None: ...

    def begin(self, step: int) -> None: ...

    def end(self) -> dict[str, float]:
        return {"rolltree/run_ahead_on": 1.0}


def made(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Sampler:
    """A sampler with run-ahead and a run log, and servers that answer."""
    servers = SimpleNamespace(failures=0, counters=lambda: [{"steps": 1.0, "row_steps": 1.0, "tokens": 2.0}])
    monkeypatch.setattr(hook, "Ahead", Ahead)
    monkeypatch.setattr(hook, "runs_ahead", lambda config: True)
    monkeypatch.setattr(hook.Servers, "find", lambda timeout: servers)
    options = VerlOptions(run_ahead=True, run_log=str(folder))
    return Sampler(Wrapped(), options, SimpleNamespace(config=None))


def fail(*args: object, **kwargs: object) -> Any:
    raise OSError(28, "No space left on device")


BREAKS = {
    "nothing": lambda patch, sampler: None,
    "run-ahead is made": lambda patch, sampler: patch.setattr(Ahead, "__init__", fail),
    "run-ahead begins": lambda patch, sampler: patch.setattr(Ahead, "begin", fail),
    "run-ahead ends": lambda patch, sampler: patch.setattr(Ahead, "end", fail),
    "servers are looked up": lambda patch, sampler: patch.setattr(hook.Servers, "find", fail),
    "counters are added up": lambda patch, sampler: patch.setattr(sampler._account, "step", fail),
    "the run log is written": lambda patch, sampler: patch.setattr(sampler._run_log, "write", fail),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_step_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    sampler = made(monkeypatch, tmp_path)
    BREAKS[what](monkeypatch, sampler)
    steps = [sampler.sample(step, "train", 8) for step in (1, 2, 3)]
    for batch, metrics in steps:
        assert batch is BATCH
        assert METRICS.items() <= metrics.items()
        assert math.isfinite(metrics["rolltree/wait_seconds"])
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == (what != "nothing"), "whoever asked for rolltree is told once"
    assert steps[-1][1]["rolltree/failures"] == (0 if what == "nothing" else 3)
    if "counters" not in what and "servers" not in what:
        assert steps[0][1]["rolltree/tokens"] == 2.0, "one failure took the other numbers along"


def test_a_run_log_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = VerlOptions(run_log=str(tmp_path / "file" / "folder"))
    with pytest.raises(InvalidInputError, match=r"sampler_kwargs\.run_log = "):
        Sampler(Wrapped(), options, SimpleNamespace(config=None))


def test_what_verl_raises_is_verls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sampler = made(monkeypatch, tmp_path)
    monkeypatch.setattr(Wrapped, "sample", fail)
    with pytest.raises(OSError, match="No space"):
        sampler.sample(1, "train", 8)


def test_validation_is_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sampler = made(monkeypatch, tmp_path)
    assert sampler.sample(1, "val", 8) == (BATCH, METRICS)


def marking(**options: Any) -> Any:
    """As much of the worker as marks; verl's own needs a cluster to start."""
    worker = object.__new__(MarkingWorker)
    worker.rolltree_options = VerlOptions(**options)
    return worker


@pytest.mark.parametrize("step", [math.nan, 2**63, "seven", None])
def test_a_step_that_is_no_version_leaves_it_out(step: object) -> None:
    mark = marking()._mark({"step": step, "validate": True}, {})
    assert (mark.version, mark.validation, mark.key) == (None, True, None)


def test_steps_of_any_kind_of_number_are_versions() -> None:
    versions = [marking()._mark({"step": s, "validate": False}, {}).version for s in (3, np.int64(3), np.float32(3))]
    assert versions == [3, 3, 3]
    assert {type(version) for version in versions} == {int}


@pytest.mark.parametrize("row", [{}, {"problem": None}, {"problem": math.nan}])
def test_a_row_without_a_name_is_named_by_its_tokens(row: dict[str, Any]) -> None:
    mark = marking(key_column="problem")._mark({"step": 1, "validate": False}, row)
    assert (mark.key, mark.version) == (None, 1)


def test_a_row_with_a_name_has_it() -> None:
    mark = marking(key_column="problem")._mark({"step": 1, "validate": False}, {"problem": "sum-1"})
    assert mark.key == "column:sum-1"
