"""verl's step goes on when rolltree's figures of it cannot be had or written."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("omegaconf")
pytest.importorskip("ray")

from rolltree.runlog import steps
from rolltree.verl.hook import Sampler
from rolltree.verl.options import VerlOptions


class Wrapped:
    """verl's own sampler."""

    poll_interval = 0.0

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        return [global_steps] * batch_size, {"verl/own": 1.0}


class Servers:
    """The replicas' counters."""

    failures = 0

    def counters(self) -> list[dict[str, float]]:
        return [{"steps": 1, "row_steps": 2, "tokens": 3, "drafted": 0, "accepted": 0}]


class Broken(Servers):
    """An answer that nothing can be made of."""

    def counters(self) -> list[dict[str, float]]:
        return [{"tokens": None}]  # type: ignore[dict-item]


def sampler(folder: Path, servers: Servers) -> Sampler:
    made = Sampler(Wrapped(), VerlOptions.read({"run_log": str(folder), "run_ahead": False}), trainer=None)
    made._servers = servers  # type: ignore[assignment]
    return made


def test_a_run_log_that_is_gone_costs_no_step_and_no_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = sampler(tmp_path / "run", Servers())
    made.sample(1, "train", 2)
    assert [row["step"] for row in steps(tmp_path / "run")] == [1]
    shutil.rmtree(tmp_path / "run")
    with caplog.at_level(logging.WARNING, "rolltree"):
        for step in (2, 3):
            batch, metrics = made.sample(step, "train", 2)
            assert batch == [step, step]
            assert {"verl/own", "rolltree/tokens"} <= metrics.keys()
    assert sum("Going on without" in record.getMessage() for record in caplog.records) == 1


def test_counters_that_make_no_sense_cost_no_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = sampler(tmp_path / "run", Broken())
    with caplog.at_level(logging.WARNING, "rolltree"):
        for step in (1, 2):
            batch, metrics = made.sample(step, "train", 1)
            assert batch == [step]
            assert (metrics["verl/own"], metrics["rolltree/failures"]) == (1.0, step)
            assert "rolltree/tokens" not in metrics
    assert sum("goes on without rolltree's numbers" in record.getMessage() for record in caplog.records) == 1
