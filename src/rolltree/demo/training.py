"""Builds one GRPO training of the demo's model on TRL's own trainer, and records what its rollouts cost and
earned.

The plain and the speculative training differ in the rollout function's `speculate` alone.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from rolltree.config import DraftConfig
from rolltree.demo.assets import PROMPT_SEED, load_model, load_tokenizer
from rolltree.demo.config import DemoConfig
from rolltree.demo.stepper import Stepper
from rolltree.demo.task import Problem, sample_problems
from rolltree.trl import RolloutFunction, RolloutRecord


@dataclass
class GenerateTimer:
    """Times the trainer's own `model.generate` on the batch at hand; its samples are thrown away."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def measure(self, trainer: Any, prompt_ids: list[list[int]]) -> None:
        """Generate as the trainer would without a rollout function; the random state is left as found."""
        with torch.random.fork_rng(devices=[]):
            start = time.perf_counter()
            completions, _ = trainer._generate_single_turn(prompt_ids, None, {}, trainer.num_generations)
            self.seconds.append(time.perf_counter() - start)
        self.tokens.append(sum(map(len, completions)))


class Training:
    """One GRPO training that is advanced step by step."""

    def __init__(self, config: DemoConfig, *, speculate: bool, time_generate: bool = False) -> None:
        self.rollout = RolloutFunction(
            draft=DraftConfig(max_draft=config.max_draft), speculate=speculate, slots=config.slots, seed=config.seed
        )
        self.completions: list[list[list[int]]] = []
        """Token ids by step and sample."""
        self.rewards: list[float] = []
        """Mean reward by step."""
        self.generate = GenerateTimer() if time_generate else None
        self._folder = tempfile.TemporaryDirectory(prefix="rolltree-demo-")
        self.trainer: Any = self._make_trainer(config)
        self._stepper = Stepper(self.trainer, config.seed)

    def advance(self) -> None:
        """Roll out one batch and take one optimizer step."""
        self._stepper.advance()

    def stop(self) -> None:
        """End the training where it stands."""
        self._stepper.stop()
        self._folder.cleanup()

    @property
    def history(self) -> list[RolloutRecord]:
        """Cost of the rollouts by step."""
        return self.rollout.history

    @property
    def generate_seconds(self) -> list[float]:
        """Seconds of `model.generate` by step; empty when it is not timed."""
        return self.generate.seconds if self.generate else []

    def weights_sha256(self) -> str:
        """SHA-256 over name, type, shape and bytes of every tensor of the model, in order of name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.trainer.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _make_trainer(self, config: DemoConfig) -> GRPOTrainer:
        problems = sample_problems(config.prompts, PROMPT_SEED)
        rows = {"prompt": [p.prompt for p in problems], "numbers": [list(p.numbers) for p in problems]}
        trainer = GRPOTrainer(
            model=load_model(),
            reward_funcs=self._reward,
            args=grpo_config(config, self._folder.name),
            train_dataset=Dataset.from_dict(rows),
            processing_class=load_tokenizer(),
            rollout_func=self._roll_out,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _roll_out(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        output = self.rollout(prompts, trainer)
        self.completions.append(output["completion_ids"])
        if self.generate is not None:
            self.generate.measure(trainer, output["prompt_ids"])
        return output

    def _reward(self, completions: list[str], numbers: list[list[int]], **_: Any) -> list[float | None]:
        rewards = [Problem(tuple(n)).reward(text) for n, text in zip(numbers, completions, strict=True)]
        self.rewards.append(sum(rewards) / len(rewards))
        return list(rewards)


def grpo_config(config: DemoConfig, folder: str) -> GRPOConfig:
    """TRL's settings: on-policy GRPO in float32 on the CPU, nothing logged, nothing saved."""
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
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
