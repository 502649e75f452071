"""The trainings that the tests look at. Each runs once; the selected tests' trainings are started ahead, two at a time.

A training takes some 100 seconds of one core, nearly all of it until the first step: Python processes that import
torch, verl and vLLM one after the other. So there are few of them, each shows several things, and two run side by side
where the machine has two cores and the memory. The long list, an algorithm each with and without, is marked `slow`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock

from rolltree.verl import VerlOptions, config_lines
from rolltree.verl.lines import ENGINE, ROLLOUT
from tests.verl_on_cpu.demo import PLAIN_LINES as PLAIN
from tests.verl_on_cpu.demo import POLL_SECONDS
from tests.verl_on_cpu.run import RunRecord, train
from tests.verl_on_cpu.settings import TOOL_LINES, RunSettings

BYTES_EACH = 7 << 30
"""Memory that a training may take: 5 GB with one replica, 7 GB with two."""

SAMPLED_VALIDATION = (
    "actor_rollout_ref.rollout.val_kwargs.temperature=1",
    "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
    "actor_rollout_ref.rollout.val_kwargs.n=16",
)
"""The same weights generate at random with rolltree and without: what they write has the same distribution."""
TURNS = RunSettings(
    algorithm="ppo", greedy=True, learning_rate=0.1, validate=True, samples=1, entropy=0.1,
    extra=(*TOOL_LINES, *SAMPLED_VALIDATION),
)  # fmt: skip
"""PPO with a critic, tools, greedy rollouts that must be the same, validation at random."""
AHEAD = RunSettings(
    algorithm="grpo", prompts=24, replicas=2, extra=("trainer.save_freq=2", "data.shuffle=True", "data.seed=3")
)
"""GRPO at random: three steps an epoch, shuffled; checkpoints in mid-epoch; two replicas, so that the router previews
who gets what."""
CUT = 4
"""Step from whose checkpoint another training goes on, without run-ahead."""
EAGER = {"always": True, "holdout": 0, "budget_share": 100, "max_slowdown": 100, "warm_rollouts": 1000}
"""Launches wherever there is a free slot, whether it pays on this machine or not, for prompts of any age."""
ASYNC = RunSettings(algorithm="dapo", mode="colocate_async", replicas=2, samples=2)
"""Two samples: groups of equal rewards, which DAPO filters, are more than half of all."""

UNBOUNDED = Path(__file__).with_name("unbounded_router.yaml")
"""A prompt always goes where it was before, so that it does not depend on anybody's speed how many move."""

GRPO = RunSettings(algorithm="grpo", validate=True)
DAPO = RunSettings(algorithm="dapo", samples=2)
PPO = RunSettings(algorithm="ppo", greedy=True, learning_rate=0.1, validate=True, samples=1, prompts=32, batch=16)
MULTI_TURN = RunSettings(algorithm="multi-turn", greedy=True, learning_rate=0.1, validate=True, samples=2, entropy=0.1)


KEPT = RunSettings(
    prompts=8, epochs=6, samples=2, greedy=True, learning_rate=1e-6,
    extra=("trainer.save_freq=4", f"+{ENGINE}.cost=off"),
)  # fmt: skip
"""The same prompts in each step, drafted for whatever the clock says; killed while the step after `SAVED` generates,
and resumed from what that saved."""
SAVED = 4
WIDE = RunSettings(
    algorithm="grpo", greedy=True, learning_rate=0.1, samples=1, entropy=0.1, replicas=2,
    extra=(
        f"{ROLLOUT}.tensor_model_parallel_size=2",
        f"++{ROLLOUT}.engine_kwargs.vllm.distributed_executor_backend=mp",
    ),
)  # fmt: skip
"""Two devices, one vLLM server on both."""
SHARED = RunSettings(algorithm="grpo", replicas=2, samples=4)
"""verl's own router: samples of a prompt are on both replicas."""
COUPLED = RunSettings(
    algorithm="grpo", repeatable=True, learning_rate=0.1,
    extra=(f"{ROLLOUT}.agent.num_workers=2", f"+{ENGINE}.cost=off"),
)  # fmt: skip
"""GRPO at temperature 1 by the requests' noise, with drafts and without; two agent loop workers split each group."""
SPLIT = RunSettings(algorithm="grpo", replicas=2, epochs=1, extra=(f"+{ROLLOUT}.engine_kwargs.vllm.seed=5",))
"""Two replicas of one seed, which verl itself would never give them; each gets a part of every group."""
DEAF = RunSettings(algorithm="grpo", epochs=1)
"""Every call to the vLLM server is given up."""


def rolltree(*, rpc_seconds: float = 300, **options: object) -> tuple[str, ...]:
    """The user's lines; calls may take long, because no verdict may depend on the machine's load."""
    made = VerlOptions(poll_seconds=POLL_SECONDS, rpc_seconds=rpc_seconds, **options)  # type: ignore[arg-type]
    return tuple(config_lines(options=made))


RUNS: dict[str, tuple[RunSettings, tuple[str, ...]]] = {
    "turns": (TURNS, rolltree()),
    "turns plain": (TURNS, PLAIN),
    "ahead": (AHEAD, rolltree(run_ahead=EAGER)),
    "async": (ASYNC, (*rolltree(key_column="problem", run_ahead=True), f"{ROLLOUT}.router_config_path={UNBOUNDED}")),
    "grpo": (GRPO, rolltree()),
    "grpo plain": (GRPO, PLAIN),
    "dapo": (DAPO, rolltree()),
    "dapo plain": (DAPO, PLAIN),
    "ppo": (PPO, rolltree()),
    "ppo plain": (PPO, PLAIN),
    "multi-turn": (MULTI_TURN, rolltree()),
    "multi-turn plain": (MULTI_TURN, PLAIN),
    "coupled": (COUPLED, rolltree(coupled=True)),
    "coupled plain": (COUPLED, rolltree(coupled=True, speculate=False)),
    "split": (SPLIT, rolltree(coupled=True, route=False)),
    "ahead resumed": (AHEAD, rolltree()),
    "wide": (WIDE, rolltree()),
    "wide plain": (WIDE, PLAIN),
    "shared": (SHARED, rolltree(route=False)),
    "kept": (KEPT, rolltree()),
    "kept resumed": (KEPT, rolltree()),
    "deaf": (DEAF, rolltree(rpc_seconds=0.001, run_ahead=EAGER)),
}
SETTINGS = {name: settings for name, (settings, _) in RUNS.items()}


def side_by_side() -> int:
    """Return how many trainings run at once: one a core, as far as the memory goes, two at most."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) << 10
    return max(1, min(2, os.cpu_count() or 1, available // BYTES_EACH))


class Runs:
    """Runs what is asked for, once."""

    def __init__(self, folder: Path, ahead: Iterable[str] = ()) -> None:
        self.folder, self._lock = folder, Lock()
        self._pool = ThreadPoolExecutor(side_by_side(), thread_name_prefix="training")
        self._started: dict[str, Future[RunRecord]] = {}
        for name in RUNS:
            if name in ahead:
                self._start(name)

    def __getitem__(self, name: str) -> RunRecord:
        """Return what a training left behind; raise what ended it."""
        return self._start(name).result()

    def cancel(self) -> None:
        """Start no more."""
        self._pool.shutdown(cancel_futures=True)

    def _start(self, name: str) -> Future[RunRecord]:
        with self._lock:
            if name not in self._started:
                self._started[name] = self._pool.submit(self._train, name)
            return self._started[name]

    def _train(self, name: str) -> RunRecord:
        settings, lines = RUNS[name]
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir()
        if name == "ahead resumed":
            checkpoint = self.checkpoint()
            lines = (*lines, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}")
        until = None
        if name.startswith("kept"):
            lines = (*lines, *rolltree(store=str(self.store))[-1:])
        if name == "kept":
            until = self._is_after_saving
        if name == "kept resumed":
            assert self["kept"]
            checkpoint = self.folder / "kept" / "checkpoints" / f"global_step_{SAVED}"
            lines = (*lines, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}")
        return train(settings, folder, lines=lines, until=until)

    @property
    def store(self) -> Path:
        """Where the trainings that keep their rollouts do."""
        return self.folder / "rollouts.db"

    def _is_after_saving(self) -> bool:
        """Whether some rollouts of the step after `SAVED` are safe."""
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(DISTINCT version) FROM rollout").fetchone()[0]) > SAVED
        return False

    def checkpoint(self) -> Path:
        """Return where the training that ran ahead saved itself after step `CUT`."""
        return self.folder / "ahead" / "checkpoints" / f"global_step_{CUT}"
