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
    from rolltree.demo.training import make_trainer, problem_rewards
    from rolltree.trl import RolloutFunction

    generate = RolloutFunction(slots=config.slots, seed=config.seed)
    remembered: list[Remembered] = []

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        output = generate(prompts, trainer)
        for prompt, rollout in zip(output["prompt_ids"], output["completion_ids"], strict=True):
            remembered.append(Remembered(as_tokens(prompt), as_tokens(rollout), trainer.state.global_step))
        return output

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, folder, rollout=roll_out, reward=problem_rewards)
        trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model).eval(), remembered
