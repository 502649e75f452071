"""A real GRPO training once with every drafter, end to end: rollout seconds, whole steps, rewards, identical weights.

Every training starts from the same weights and draws the same noise. In float32 rollouts and final weights must be
identical whatever is drafted; in 16 bits rollouts part at near ties, which is reported. Each drafter trains one step
unmeasured first: kernels load, the allocator and the compiler settle. One training, rolltree's where it runs, records
its rollouts as traces; what that costs is in its seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.gpu.tasks import Task
from benchmarks.gpu.training import Progress, Training, train
from rolltree.budget import CostModel
from rolltree.config import DraftConfig
from rolltree.demo.config import DemoConfig
from rolltree.demo.training import weights_sha256
from rolltree.replay.drafters.text import SuffixDrafter
from rolltree.store import RolloutStore
from rolltree.store.traces import export_traces
from rolltree.trl import RolloutFunction
from rolltree.trl.history import total

BASELINE, PEER, OURS = "none", "suffix", "rolltree"
DRAFTERS = (BASELINE, PEER, OURS, "rolltree-tree")


def run_grpo(
    start: PreTrainedModel, task: Task, config: DemoConfig, drafters: Sequence[str], *, cost: CostModel | None,
    traces: Path, compile: bool = False, progress: Progress = lambda case: None,
) -> dict[str, Any]:  # fmt: skip
    """Train once with every drafter.

    Args:
        start: the weights, which stay as they are; their type and device are those of the training.
        task: prompts and rewards.
        config: sizes; see `training.settings`.
        drafters: out of `DRAFTERS`; "none" is always run.
        cost: frozen step-cost model for rolltree's budget; measured in the warm-up when None.
        traces: where the rollouts go, JSON lines, gzipped.
        compile: the engine's sampler.
        progress: called with each step.

    Returns:
        `{task, settings, weights_moved, cases: one for every drafter and epoch, runs: one for every drafter,
        traces}`: docs/gpu.md.

    """
    names = [BASELINE, *[name for name in DRAFTERS[1:] if name in drafters]]
    recorder = OURS if OURS in names else names[-1]
    runs: dict[str, Training] = {}
    recorded: dict[str, Any] = {}
    for name in names:

        def say(step: str, name: str = name) -> None:
            progress(f"GRPO, {name}, {step}")

        say("warm-up")
        warm = _rollout(name, config, cost, compile)
        train(start, task, config, warm, steps=1)
        cost = warm.drafter.cost if warm.drafter else cost  # measured once, outside of what is timed
        with _store(name == recorder) as store:
            rollout = _rollout(name, config, cost, compile, store)
            runs[name] = train(start, task, config, rollout, progress=say)
            runs[name].model = None  # weights are compared by their hash
            if store is not None:
                count = export_traces(store, traces, overwrite=True)
                recorded = {"file": traces.name, "drafter": name, "rollouts": count, "bytes": traces.stat().st_size}
    return {
        "task": task.name, "settings": _settings(config), "traces": recorded,
        "weights_moved": runs[BASELINE].weights_sha256 != weights_sha256(start),
        "cases": [case for name in names for case in _epochs(name, runs, config)],
        "runs": [_run(name, runs) for name in names],
    }  # fmt: skip


@contextmanager
def _store(wanted: bool) -> Iterator[RolloutStore | None]:
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rolltree-gpu-") as folder, RolloutStore(Path(folder) / "db") as store:
        yield store


def _rollout(
    name: str, config: DemoConfig, cost: CostModel | None, compile: bool, store: RolloutStore | None = None
) -> RolloutFunction:
    draft = DraftConfig(max_draft=config.max_draft, shape="tree" if name == "rolltree-tree" else "chain")
    peer = SuffixDrafter(max_draft=config.max_draft, tree=False) if name == PEER else None
    return RolloutFunction(
        draft=draft, cost=cost or "measure", speculate=name != BASELINE, slots=config.slots, seed=config.seed,
        store=store, drafter=peer, compile=compile,
    )  # fmt: skip


def _settings(config: DemoConfig) -> dict[str, Any]:
    names = ("epochs", "prompts", "samples", "batch", "slots", "max_draft", "max_tokens", "learning_rate", "seed")
    return {name: getattr(config, name) for name in names}


def _epochs(name: str, runs: dict[str, Training], config: DemoConfig) -> list[dict[str, Any]]:
    return [_epoch(name, runs, config, epoch) for epoch in range(config.epochs)]


def _epoch(name: str, runs: dict[str, Training], config: DemoConfig, epoch: int) -> dict[str, Any]:
    span = slice(epoch * config.steps_per_epoch, (epoch + 1) * config.steps_per_epoch)
    done = runs[name]
    sums, rewards = total(done.history[span]), done.rewards[span]
    return {
        "batch": config.slots, "max_draft": config.max_draft, "drafter": name, "epoch": epoch + 1,
        "rollouts": sums.sequences, "tokens": sums.tokens, "reward": sum(rewards) / len(rewards),
        "tokens_per_second": sums.tokens / sums.seconds, "tokens_per_step": sums.tokens_per_step,
        "drafted_per_step": sums.drafted / max(sums.row_steps, 1), "acceptance_rate": sums.acceptance_rate,
        "drafter_errors": sums.engine.drafter_errors, **_times(name, runs, span),
    }  # fmt: skip


def _run(name: str, runs: dict[str, Training]) -> dict[str, Any]:
    """A training as a whole, beside the one without drafts."""
    done, base = runs[name], runs[BASELINE]
    pairs = list(zip(base.completions, done.completions, strict=True))
    same = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
    return {
        "drafter": name, **_times(name, runs, slice(None)),
        "rollouts": sum(len(step) for step in done.completions), "identical_rollouts": sum(same),
        "first_different_step": next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), None),
        "identical_rewards": done.rewards == base.rewards,
        "identical_weights": done.weights_sha256 == base.weights_sha256, "weights_sha256": done.weights_sha256,
        "tokens_per_step": total(done.history).tokens_per_step,
    }  # fmt: skip


def _times(name: str, runs: dict[str, Training], span: slice) -> dict[str, Any]:
    """Seconds of rollouts and of whole steps; rollouts are compared by the token, should they differ."""

    def per_token(other: str) -> float:
        sums = total(runs[other].history[span])
        return sums.seconds / sums.tokens

    def whole(other: str) -> float:
        return sum(runs[other].step_seconds[span])

    return {
        "seconds": total(runs[name].history[span]).seconds, "step_seconds": whole(name),
        "speedup": per_token(BASELINE) / per_token(name), "step_speedup": whole(BASELINE) / whole(name),
        "speedup_over_suffix": per_token(PEER) / per_token(name) if PEER in runs else None,
    }  # fmt: skip
