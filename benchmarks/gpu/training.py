"""One GRPO training by TRL's own trainer on one device, timed step by step.

The trainer is unmodified; rollouts are those of `rolltree.trl.RolloutFunction`. Clocks wait for the device. In float32
on CUDA the update runs PyTorch's deterministic algorithms (rollouts need none): two trainings with the same rollouts
must end in the same weights.
"""

from __future__ import annotations

import copy
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, TrainerCallback

from benchmarks.gpu.shapes import synchronise
from benchmarks.gpu.tasks import Task
from rolltree.demo.config import DemoConfig
from rolltree.demo.quiet import quiet
from rolltree.demo.training import TrainingSubject, make_trainer, weights_sha256
from rolltree.trl import RolloutFunction
from rolltree.trl.history import RolloutRecord

BATCH = 64  # completions of an optimizer step at most, and rows of the engine
KERNELS = (
    SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH,
)  # fmt: skip
Progress = Callable[[str], None]


def settings(task: Task, *, prompts: int, samples: int, epochs: int, max_draft: int) -> DemoConfig:
    """Sizes of a training: all rollouts of an optimizer step run at once, at most BATCH of them."""
    batch = math.gcd(prompts, max(1, BATCH // samples)) * samples
    return DemoConfig(
        epochs=epochs, prompts=prompts, samples=samples, batch=batch, slots=batch, max_draft=max_draft,
        max_tokens=task.max_tokens, learning_rate=task.learning_rate, compare_generate=False, plot=None,
    )  # fmt: skip


@dataclass(slots=True)
class Training:
    """What one training did, a list entry an optimizer step."""

    model: Any
    """The trained model, in evaluation mode."""
    weights_sha256: str = ""
    history: list[RolloutRecord] = field(default_factory=list)
    """Cost of the rollouts; its seconds are of generation alone."""
    step_seconds: list[float] = field(default_factory=list)
    """Whole steps: rollouts, rewards, update."""
    rewards: list[float] = field(default_factory=list)
    """Mean over the step's rollouts."""
    prompts: list[list[list[int]]] = field(default_factory=list)
    completions: list[list[list[int]]] = field(default_factory=list)


def train(
    start: PreTrainedModel, task: Task, config: DemoConfig, rollout: RolloutFunction, *, steps: int | None = None,
    progress: Progress = lambda step: None,
) -> Training:  # fmt: skip
    """Train a copy of `start` on its device, for `steps` optimizer steps or all epochs of `config`."""
    done = Training(copy.deepcopy(start).train())
    watch = _Watch(done, task, rollout, steps, progress)
    strict = start.dtype == torch.float32 and start.device.type == "cuda"  # a CPU is repeatable as it is
    with quiet(), tempfile.TemporaryDirectory(prefix="rolltree-gpu-") as folder:
        subject = TrainingSubject(done.model, task.tokenizer, task.rows)
        trainer = make_trainer(
            config, folder, rollout=watch.roll_out, reward=watch.reward, callbacks=[watch], subject=subject
        )
        with deterministic() if strict else nullcontext():
            trainer.train()
        done.model = trainer.accelerator.unwrap_model(trainer.model).eval()
        done.weights_sha256 = weights_sha256(done.model)
    done.history = list(rollout.history)
    del trainer, subject
    gc.collect()  # the optimizer's state; the trainer is a cycle
    return done


class _Watch(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """What the trainer calls: for rollouts, for rewards, and after each step."""

    def __init__(
        self, done: Training, task: Task, rollout: RolloutFunction, steps: int | None, progress: Progress
    ) -> None:
        self._done, self._task, self._rollout = done, task, rollout
        self._steps, self._progress, self._clock = steps, progress, 0.0
        self._device = done.model.device

    def roll_out(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """TRL's `rollout_func`."""
        with deterministic(False) if self._device.type == "cuda" else nullcontext():
            output = self._rollout(prompts, trainer)
        self._done.prompts.append(output["prompt_ids"])
        self._done.completions.append(output["completion_ids"])
        return output

    def reward(self, **columns: Any) -> list[float | None]:
        """TRL's reward function."""
        rewards = self._task.reward(**columns)
        self._done.rewards.append(sum(rewards) / len(rewards))
        return list(rewards)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Stop the clock, and the training where it is to be short."""
        synchronise(self._device)
        now = time.perf_counter()
        self._done.step_seconds.append(now - self._clock)
        self._clock = now
        self._progress(f"step {state.global_step} of {self._steps or state.max_steps}")
        control.should_training_stop |= state.global_step == self._steps
        return control


@contextmanager
def deterministic(strict: bool = True) -> Iterator[None]:
    """Gradients that come out the same every time, as far as PyTorch has kernels for it; with False, as usual.

    Memory-efficient attention adds its gradients up in any order, so attention is written out when strict. Rollouts in
    the midst of it turn it off: they are timed, and exact without it.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(strict, warn_only=True)
    try:
        with sdpa_kernel([SDPBackend.MATH] if strict else list(KERNELS)):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warn)
