"""The demo's model after some epochs of real GRPO, and every rollout of it: what a warm cache really holds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

from rolltree.demo.config import DemoConfig
from rolltree.tokens import as_tokens
from rolltree.types import Int32Array


@dataclass(frozen=True, slots=True)
class Remembered:
    """One earlier rollout and the policy version (optimizer step) that generated it."""

    prompt: Int32Array
    rollout: Int32Array
    version: int


def train(config: DemoConfig) -> tuple[Any, list[Remembered]]:
    """Run GRPO as the demo does, with speculation; return the trained model and all its rollouts, oldest first."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    from rolltree.demo.assets import PROMPT_SEED, load_model, load_tokenizer
    from rolltree.demo.task import Problem, sample_problems
    from rolltree.demo.training import grpo_config
    from rolltree.trl import RolloutFunction

    generate = RolloutFunction(slots=config.slots, seed=config.seed)
    remembered: list[Remembered] = []

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        output = generate(prompts, trainer)
        for prompt, rollout in zip(output["prompt_ids"], output["completion_ids"], strict=True):
            remembered.append(Remembered(as_tokens(prompt), as_tokens(rollout), trainer.state.global_step))
        return output

    def reward(completions: list[str], numbers: list[list[int]], **_: Any) -> list[float | None]:
        return [Problem(tuple(n)).reward(text) for n, text in zip(numbers, completions, strict=True)]

    problems = sample_problems(config.prompts, PROMPT_SEED)
    rows = {"prompt": [p.prompt for p in problems], "numbers": [list(p.numbers) for p in problems]}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = GRPOTrainer(
            model=load_model(),
            reward_funcs=reward,
            args=grpo_config(config, folder),
            train_dataset=Dataset.from_dict(rows),
            processing_class=load_tokenizer(),
            rollout_func=roll_out,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model).eval(), remembered
