"""Tensor parallelism: all ranks act on the same drafts, whoever schedules; greedy text is that without speculation.

The engines run in processes of their own (see ranks.py), one start for all tests of an executor, so none can hang here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rolltree.vllm import compat_ranks
from tests.vllm.conftest import FAST

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1800
"""Seconds: only what hangs takes so long, on however busy a machine."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(mode: str, folder: Path, launcher: list[str], *, module: str = "tests.vllm.ranks") -> list[dict[str, Any]]:
    """What each process saw. All of them are ended when one fails or the limit is over."""
    command = [sys.executable, *launcher, "-m", module, *([mode] if mode else []), str(folder)]
    environment = os.environ | FAST | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # else: a NUMA node for each rank
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    assert code == 0, f"{'ran into the limit' if code is None else code}:\n{(folder / 'log').read_text()[-8000:]}"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9].json"))]


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(name="ranks", scope="module")
def fixture_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two ranks under torchrun, each with its own scheduler."""
    seen = run("external", tmp_path_factory.mktemp("external"), TORCHRUN)
    assert len(seen) == 2
    return seen


@pytest.fixture(name="ordinary", scope="module")
def fixture_ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One scheduler with two workers."""
    (seen,) = run("mp", tmp_path_factory.mktemp("mp"), [])
    return seen


@pytest.mark.parametrize("cost", ["learned", "frozen"])
def test_ranks_that_schedule_alone_keep_the_text(ranks: list[dict[str, Any]], cost: str) -> None:
    """Cold, warm and after `clear`, on both ranks, by drafts that were accepted and that no rank objected to."""
    right = ranks[0]["right"]
    for rank in ranks:
        assert rank["right"] == right
        assert rank[cost]["texts"] == [right] * 3
        assert rank[cost]["cold"] > 50
        assert rank[cost]["warm"] > 200
        assert rank[cost]["stats"]["errors"] == 0
        assert rank[cost]["stats"]["inferred_versions"] == 1
    assert ranks[0][cost]["stats"]["accepted"] == ranks[1][cost]["stats"]["accepted"]


def test_the_cost_is_the_leaders(ranks: list[dict[str, Any]]) -> None:
    """Clocks differ; what is drafted by does not."""
    assert ranks[0]["learned"]["costs"] == ranks[1]["learned"]["costs"]
    assert ranks[0]["learned"]["costs"] != ranks[0]["frozen"]["costs"]


def test_seeded_samples_are_the_same_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """At a temperature the text depends on the drafts, so the ranks must have the same."""
    assert ranks[0]["sampled"] == ranks[1]["sampled"]
    assert ranks[0]["sampled_right"] == ranks[1]["sampled_right"]
    assert ranks[0]["sampled"][0] != ranks[0]["right"]


def test_a_pause_on_one_rank_pauses_all(ranks: list[dict[str, Any]]) -> None:
    """No draft is verified until that rank resumes."""
    for rank in ranks:
        seen = rank["paused_by_one"]
        assert [seen["texts"], seen["texts_after"]] == [rank["right"]] * 2
        assert seen["drafted"] == 0
        assert seen["drafted_after"] > 0


def test_an_error_on_one_rank_is_one_of_all(ranks: list[dict[str, Any]]) -> None:
    """Its step has no drafts anywhere, and all ranks go on alike, from empty trees."""
    for rank in ranks:
        seen = rank["failed_once"]
        assert seen["texts"] == [rank["right"]] * 2
        assert seen["emptied"]
        assert seen["accepted"] > 0
        assert seen["new_errors"] == 1


def test_ranks_that_part_draft_no_more(ranks: list[dict[str, Any]]) -> None:
    """Different drafts on one rank: found before they are verified, said in the log, and the text is right."""
    for rank in ranks:
        assert rank["parted"]["texts"] == [rank["right"]] * 2
        assert rank["parted"]["paused"]
        assert rank["parted"]["errors"] > 0
        (line,) = (line for line in rank["lines"] if "part in their drafts" in line)
        assert "report this line" in line


@pytest.mark.parametrize("cost", ["learned", "frozen"])
def test_workers_of_one_scheduler_keep_the_text(
    ordinary: dict[str, Any], ranks: list[dict[str, Any]], cost: str
) -> None:
    """The usual executor: the scheduler hands one rank's drafts to all."""
    assert ordinary[cost]["texts"] == [ranks[0]["right"]] * 3
    assert ordinary[cost]["cold"] > 50
    assert ordinary[cost]["warm"] > 200
    assert ordinary[cost]["stats"]["errors"] == 0


def test_coupled_ranks_sample_alike(ordinary: dict[str, Any]) -> None:
    """By one seed with drafts and without: a rank that drew otherwise would make other text where there are drafts."""
    undrafted, *drafted = ordinary["sampled"]
    assert drafted == [undrafted] * 2


@pytest.mark.parametrize(
    ("backend", "ranks", "alone"),
    [
        ("mp", 2, False),
        ("external_launcher", 2, True),
        ("external_launcher", 1, False),
        ("vllm.v1.executor.uniproc_executor.ExecutorWithExternalLauncher", 2, True),
        ("vllm.v1.executor.multiproc_executor.MultiprocExecutor", 2, False),
    ],
)
def test_who_schedules_alone_is_told_by_the_executor(backend: str, ranks: int, alone: bool) -> None:
    """By what it is, not by its name: a class of the user's own is looked at, too."""
    parallel = SimpleNamespace(tensor_parallel_size=ranks, distributed_executor_backend=backend)
    assert compat_ranks.schedules_alone(SimpleNamespace(parallel_config=parallel)) == alone
