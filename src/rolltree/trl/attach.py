"""`attach(trainer)`: a TRL trainer that generates by vLLM tells rolltree, in that vLLM, what it must know.

The drafts are made in vLLM, which the environment variable ROLLTREE_DRAFT turns on before the trainer makes its engine.
This module adds what the engine cannot know: the policy version (the trainer's global step), which requests are
validations, which conversation a later turn belongs to; shares finished rollouts between the engines of several
processes; and puts the engine's counters into the trainer's log. No line of TRL is imported or changed: one method of
the trainer's own engine (or client) is replaced on that object, and a callback is added.

Invariants: what the trainer gets is what its engine returned; nothing here ends a training once `attach` has returned;
every process takes part in the same collectives, one a step of training or evaluation.
"""

from __future__ import annotations

import os
import time
from os import PathLike
from typing import Any

from transformers import TrainerCallback

from rolltree.errors import InvalidInputError, RolltreeError
from rolltree.metrics import RATIOS, CacheStats, add_up, docs_of, with_ratios
from rolltree.runlog import RunLog, SideChannel
from rolltree.serving.switch import DRAFT
from rolltree.trl.engines import Call, InProcess, OverHttp, Side
from rolltree.trl.metrics_file import RewardLine, about
from rolltree.trl.ranks import Ranks, Report
from rolltree.vllm.control import Control

PREFIX = "rolltree/"
HELD = frozenset(f"cache_{name}" for name in docs_of(CacheStats, held=True))
"""Statistics that are no sums."""
GAUGES = {"cache_bytes": "tree_bytes", "cache_prompts": "cached_prompts", "cache_rollouts": "cached_rollouts"}
"""Those that a run's report shows, and the names that it knows them by."""
ATTRIBUTE = "_rolltree_attachment"


def attach(
    trainer: Any, *, share: bool = True, remember_evaluation: bool = False, run_dir: str | PathLike[str] | None = None
) -> Attachment:
    """Tell rolltree in the trainer's vLLM what it must know; call it in every process, before `trainer.train()`.

    A second call replaces the first.

    Args:
        trainer: GRPOTrainer, RLOOTrainer, or another of TRL's with `vllm_generation`, and `use_vllm=True`.
        share: Give the rollouts of each process to the engines of all others, once a step (colocate).
        remember_evaluation: True: completions of the trainer's evaluation stay in the trees, too.
        run_dir: Folder for the metrics of each step, from which `rolltree report` makes a page.

    Raises:
        InvalidInputError: the trainer does not generate by vLLM, or its vLLM does not draft with rolltree.

    """
    for name, value in (("share", share), ("remember_evaluation", remember_evaluation)):
        if not isinstance(value, bool):
            raise InvalidInputError(name, value, "true or false")
    generation = getattr(trainer, "vllm_generation", None)
    if generation is None:
        raise InvalidInputError(
            "args.use_vllm", getattr(getattr(trainer, "args", None), "use_vllm", None),
            "True, in a trainer of TRL 1.x that has `vllm_generation` (GRPOTrainer, RLOOTrainer)",
            "Without vLLM: GRPOTrainer(..., rollout_func=rolltree.trl.RolloutFunction()).",
        )  # fmt: skip
    if (earlier := getattr(trainer, ATTRIBUTE, None)) is not None:
        earlier.detach()
    attachment = Attachment(trainer, share=share, remember_evaluation=remember_evaluation, run_dir=run_dir)
    setattr(trainer, ATTRIBUTE, attachment)
    return attachment


def _side(generation: Any, accelerator: Any) -> Side | None:
    """The engine; None in the processes that have none."""
    if generation.mode != "server":
        return InProcess(generation.llm)
    return OverHttp(generation.vllm_client) if accelerator.is_main_process else None


def _refuse_plain(control: Control, *, is_server: bool) -> None:
    """Raise InvalidInputError unless the engine drafts."""
    try:
        control.stats()
    except RolltreeError as error:
        allowed = "a number of draft tokens, like 16, in the environment of every process before the trainer is made"
        fix = "If it is, the log of the engine's start says why it does not draft."
        if is_server:
            allowed = "a number of draft tokens, like 16, in the server's environment, with VLLM_SERVER_DEV_MODE=1"
            fix = f"rolltree must be installed there, too. {error}"
        raise InvalidInputError(DRAFT, os.environ.get(DRAFT), allowed, fix) from error


class Attachment:
    """What `attach` returns."""

    def __init__(
        self, trainer: Any, *, share: bool, remember_evaluation: bool, run_dir: str | PathLike[str] | None
    ) -> None:
        generation, processes = trainer.vllm_generation, trainer.accelerator
        is_server = generation.mode == "server"
        self._trainer, self._remember = trainer, remember_evaluation
        self._side = _side(generation, processes)
        self._ranks = Ranks(
            processes.num_processes, processes.process_index, 0 if is_server else generation.tensor_parallel_size
        )
        self._share = share and self._ranks.engines > 1 and self._ranks.speaks
        self._guard = SideChannel("rolltree's figures in the trainer's log, and the rollouts of other processes")
        self._shown: dict[str, dict[str, float]] = {}
        self._seconds, self._share_seconds, self._rollouts = 0.0, 0.0, list[dict[str, Any]]()
        self._callbacks: list[TrainerCallback] = []
        self._log: RunLog | None = None
        if self._side is not None:
            self._control = Control(self._side)
            _refuse_plain(self._control, is_server=is_server)
            self._before = self._now()
            if run_dir is not None and processes.is_main_process:
                self._log = RunLog(run_dir, about(trainer))
                self._callbacks.append(RewardLine(self._log, self._guard))
            self._callbacks.append(_Steps(self))
            self._side.watch(self._marks, self._ended)
        for callback in self._callbacks:
            trainer.add_callback(callback)

    def stats(self) -> dict[str, float]:
        """Return the sums of this process's engine since it started, and their ratios (see docs/vllm.md).

        Raises:
            RolltreeError: in server mode, the server did not answer, or this is not the main process.

        """
        if self._side is None:
            raise RolltreeError("Only the main process talks to the server.")
        return self._control.stats()

    def detach(self) -> None:
        """Leave the trainer as it was before `attach`; its engine goes on drafting, with prompts as keys."""
        if self._side is not None:
            self._side.leave()
        while self._callbacks:
            self._trainer.remove_callback(self._callbacks.pop())
        if getattr(self._trainer, ATTRIBUTE, None) is self:
            delattr(self._trainer, ATTRIBUTE)

    def _marks(self) -> dict[str, Any]:
        marks: dict[str, Any] = {"version": self._trainer.state.global_step}
        if not self._trainer.model.training:
            marks |= {"kind": "validation", "remember": self._remember}
        return marks

    def _ended(self, call: Call) -> None:
        """A generation call is over: its last requests enter the trees now, not when the next call begins."""
        self._seconds += call.seconds
        if self._share and self._trainer.model.training:
            self._rollouts += call.rollouts
        with self._guard:
            self._control.commit()

    def exchange(self, mode: str) -> None:
        """A step of training or evaluation is over in every process: share, count, show. Never raises."""
        mine = Report()
        with self._guard:
            mine = self._report()
        with self._guard:
            began = time.perf_counter()
            every = self._ranks.gather(mine)
            others = [rollout for each in self._ranks.of_others(every) for rollout in each.rollouts]
            if others and self._side is not None:  # not `Control.add`, which makes lists: the engine is in this process
                self._side.collective_rpc("rolltree", args=("add", others))
                self._share_seconds += time.perf_counter() - began
            self._show(mode, every)

    def _now(self) -> dict[str, float]:
        return {name: value for name, value in self._control.stats().items() if name not in RATIOS}

    def _report(self) -> Report:
        """What this process tells of the time since its last report."""
        now, before = self._now(), self._before
        rollouts, seconds, share_seconds = tuple(self._rollouts), self._seconds, self._share_seconds
        self._before, self._rollouts, self._seconds, self._share_seconds = now, [], 0.0, 0.0
        sums = {name: value - before.get(name, 0) for name, value in now.items() if name not in HELD}
        held = {name: value for name, value in now.items() if name in HELD}
        return Report(sums=sums, held=held, seconds=seconds, share_seconds=share_seconds, rollouts=rollouts)

    def _show(self, mode: str, every: list[Report]) -> None:
        """Put the sums since the trainer's last log line, and their ratios, into its next one."""
        slowest = {name: max(getattr(each, name) for each in every) for name in ("seconds", "share_seconds")}
        new = add_up(*(each.sums for each in every)) | slowest
        held = add_up(*(each.held for each in every))
        metrics = self._trainer._metrics[mode]  # TRL's own: a list of values a name, emptied when it logs
        is_new = f"{PREFIX}tokens" not in metrics
        self._shown[mode] = sums = new if is_new else add_up(self._shown.get(mode, {}), new)
        for name, value in (with_ratios(sums) | held).items():
            metrics[f"{PREFIX}{name}"] = [value]
        if self._log is not None:
            self._log.write(
                self._generated_at(mode),
                new,
                gauges={name: held[of] for of, name in GAUGES.items() if of in held},
                mode=mode,
            )

    def _generated_at(self, mode: str) -> int:
        """The step whose policy generated: at the end of a training step the trainer has counted it already."""
        step = int(self._trainer.state.global_step)
        return max(step - 1, 0) if mode == "train" else step


class _Steps(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """The two places that every process reaches equally often; tool loops end at different times in each."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._attachment.exchange("train")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._attachment.exchange("eval")
