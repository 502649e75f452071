"""One GRPO training of the demo's model on TRL's own trainer, run step by step at the owner's word.

The plain and the speculative training differ in the rollout function's `speculate` alone. Meant to be the work of a
`rolltree.demo.process.SideProcess`.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rolltree.config import DraftConfig
from rolltree.demo.assets import PROMPT_SEED, load_model, load_tokenizer
from rolltree.demo.config import DemoConfig
from rolltree.demo.process import Baton, Report
from rolltree.demo.quiet import quiet
from rolltree.demo.task import Problem, sample_problems
from rolltree.trl import RolloutFunction

Rollout: TypeAlias = Callable[[list[str], Any], dict[str, list[Any]]]
Reward: TypeAlias = Callable[..., Any]  # lists of floats; TRL asks for list[float | None], which list[float] is not


@dataclass(frozen=True, slots=True)
class Training:
    """The work of one side: call it with a baton."""

    config: DemoConfig
    speculate: bool
    time_generate: bool = False
    """Time the trainer's own `model.generate` on every batch."""

    def __call__(self, baton: Baton) -> str:
        """Train, one optimizer step an "advance"; returns the SHA-256 of the final weights."""
        with quiet(), tempfile.TemporaryDirectory(prefix="rolltree-demo-") as folder:
            steps = _Steps(self, baton)
            trainer = make_trainer(self.config, folder, rollout=steps.roll_out, reward=steps.reward, callbacks=[steps])
            if baton.wait():
                trainer.train()
            return weights_sha256(trainer.model)


class _Steps(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """What the trainer calls: for rollouts, for rewards, and after each step, where it waits for the baton."""

    def __init__(self, training: Training, baton: Baton) -> None:
        config = training.config
        self.rollout = RolloutFunction(
            draft=DraftConfig(max_draft=config.max_draft),
            speculate=training.speculate,
            slots=config.slots,
            seed=config.seed,
        )
        self._baton, self._time_generate = baton, training.time_generate
        self._completions: list[list[int]] = []
        self._reward = 0.0
        self._generate_seconds: float | None = None

    def roll_out(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """TRL's `rollout_func`."""
        output = self.rollout(prompts, trainer)
        self._completions = output["completion_ids"]
        if self._time_generate:
            self._generate_seconds = generate_seconds(trainer, output["prompt_ids"])
        return output

    def reward(self, completions: list[str], numbers: list[list[int]], **_: Any) -> list[float | None]:
        """TRL's reward function."""
        rewards = problem_rewards(completions, numbers)
        self._reward = sum(rewards) / len(rewards)
        return list(rewards)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Report the step and hold still."""
        record = self.rollout.history[-1]
        self._baton.send(Report(self._completions, self._reward, record, self._generate_seconds))
        control.should_training_stop |= not self._baton.wait()
        return control


def problem_rewards(completions: list[str], numbers: list[list[int]], **_: Any) -> list[float]:
    """1.0 for each completion that ends in the sum of its numbers, else 0.0."""
    return [Problem(tuple(n)).reward(text) for n, text in zip(numbers, completions, strict=True)]


def generate_seconds(trainer: Any, prompt_ids: list[list[int]]) -> float:
    """Seconds of generation as the trainer would do it without a rollout function; its samples are thrown away."""
    with torch.random.fork_rng(devices=[]):
        start = time.perf_counter()
        trainer._generate_single_turn(prompt_ids, None, {}, trainer.num_generations)
        return time.perf_counter() - start


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor of the model, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TrainingSubject:
    """What is trained, and on what."""

    model: Any
    tokenizer: Any
    rows: dict[str, list[Any]]
    """Columns of the data set: `prompt`, and what the reward function asks for by name."""

    @classmethod
    def demo(cls, config: DemoConfig) -> TrainingSubject:
        """The demo's model and problems."""
        problems = sample_problems(config.prompts, PROMPT_SEED)
        rows: dict[str, list[Any]] = {
            "prompt": [p.prompt for p in problems],
            "numbers": [list(p.numbers) for p in problems],
        }
        return cls(load_model(), load_tokenizer(), rows)


def make_trainer(
    config: DemoConfig, folder: str, *, rollout: Rollout, reward: Reward, callbacks: Sequence[TrainerCallback] = (),
    subject: TrainingSubject | None = None,
) -> Any:  # fmt: skip
    """TRL's GRPOTrainer over `subject`, the demo's when None, on the device of its model."""
    subject = subject or TrainingSubject.demo(config)
    trainer = GRPOTrainer(
        model=subject.model,
        reward_funcs=reward,
        args=grpo_config(config, folder, use_cpu=subject.model.device.type == "cpu"),
        train_dataset=Dataset.from_dict(subject.rows),
        processing_class=subject.tokenizer,
        rollout_func=rollout,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def grpo_config(config: DemoConfig, folder: str, *, use_cpu: bool = True) -> GRPOConfig:
    """TRL's settings: on-policy GRPO in the weights' own type, nothing logged, nothing saved."""
    return GRPOConfig(
        output_dir=folder,
        use_cpu=use_cpu,
        bf16=False,
        seed=config.seed,
        per_device_train_batch_size=config.batch,
        num_generations=config.samples,
        max_completion_length=config.max_tokens,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
