"""Starts one training of verl in a process of its own, bounded in time, and reads what it logged and generated.

Everything of a run lies below one folder: data, model, metrics, rollouts, output. Nothing survives the run but files:
its whole process group is killed at the end, whatever the end was.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolltree.errors import RolltreeError
from tests.verl_on_cpu.assets import write_assets
from tests.verl_on_cpu.settings import RunSettings, environment, overrides

TIMEOUT_SECONDS = 900.0
"""A run of the tests takes 60 to 120; a hung one must not block whoever waits."""
LOOK_SECONDS = 10.0
"""How often the output is searched for `KILLED`."""
CLOSE_LOOK_SECONDS = 0.1
"""How often it is looked whether a run is to be killed."""
KILLED = b"killed due to memory pressure"
"""What Ray says when it ends processes for want of memory; verl would wait for them forever."""


class RunError(RolltreeError, RuntimeError):
    """verl's trainer failed or did not end; the message holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion as verl dumped it."""

    step: int
    prompt: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run left behind."""

    metrics: list[dict[str, float]]
    """One dictionary a training step, in order; validation before training is not in it."""
    rollouts: list[Rollout]
    """Training rollouts, by step, then prompt, then text: verl finishes them in any order."""
    validation: list[Rollout]
    output: str

    def values(self, name: str) -> list[float]:
        """A metric over the steps."""
        return [float(step[name]) for step in self.metrics]


def train(
    settings: RunSettings, folder: Path, *, lines: Sequence[str] = (), timeout: float = TIMEOUT_SECONDS,
    until: Callable[[], bool] | None = None,
) -> RunRecord:  # fmt: skip
    """Train with the user's `lines` added; all its processes are killed as soon as `until` holds.

    Raises:
        RunError: verl failed, was still running after `timeout` seconds, or lost processes for want of memory.
    """
    folder = folder.resolve()
    assets = write_assets(folder / "assets", prompts=settings.prompts)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides(settings, assets, folder), *lines]
    log = folder / "output.log"
    with tempfile.TemporaryDirectory(prefix="rt-") as ray_folder:  # short: Ray puts socket names below it
        command.append(f"+ray_kwargs.ray_init._temp_dir={ray_folder}")
        status = _run(command, folder, log, timeout, until)
    if status != 0 and not (until and until()):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
        how = f"was still running after {timeout:.0f} s" if status is None else f"ended with status {status}"
        raise RunError(f"verl {how}; its output ends with\n{tail}")
    return read(folder)


def read(folder: Path) -> RunRecord:
    """Read the folder of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{"step": line["step"], **line["data"]} for line in lines if "training/global_step" in line["data"]]
    return RunRecord(
        metrics=metrics,
        rollouts=_dumped(folder / "rollouts"),
        validation=_dumped(folder / "validation"),
        output=(folder / "output.log").read_text(errors="replace"),
    )


def _run(
    command: list[str], folder: Path, log: Path, timeout: float, until: Callable[[], bool] | None
) -> int | None:  # fmt: skip
    """Return the exit status, None when it had to be stopped, or was to be."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=output, stderr=output, start_new_session=True
        )
        try:
            return _wait(process, log, timeout, until)
        finally:
            _end_group(process)


def _wait(
    process: subprocess.Popen[bytes], log: Path, timeout: float, until: Callable[[], bool] | None = None
) -> int | None:  # fmt: skip
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            return process.wait(min(LOOK_SECONDS if until is None else CLOSE_LOOK_SECONDS, left))
        except subprocess.TimeoutExpired:
            if until is not None and until():
                return None
            if KILLED in log.read_bytes():
                raise RunError(
                    f"The machine has too little memory free for this training; Ray says in {log}: {KILLED.decode()}."
                ) from None
    return None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the run: Ray's and vLLM's processes are in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _dumped(folder: Path) -> list[Rollout]:
    found: list[Rollout] = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: int(path.stem)):
        for line in path.read_text().splitlines():
            row: dict[str, Any] = json.loads(line)
            found.append(Rollout(int(path.stem), row["input"], row["output"], float(row["score"])))
    return sorted(found, key=lambda rollout: (rollout.step, rollout.prompt, rollout.text))
