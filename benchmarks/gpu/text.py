"""Real prompts for the models that have real weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.tasks import SMOLLM2_TOKENS, load_smollm2_tokenizer, task
from rolltree.bench.engine import Workload
from rolltree.bench.trained import Remembered
from rolltree.tokens import as_tokens


def workload(name: str, model: PreTrainedModel, *, train_epochs: int, samples: int, prompts: int) -> Workload:
    """Sums of the demo, on which its model can be trained first, or reasoning-gym problems for SmolLM2-135M."""
    if name != "demo":
        return smollm2_workload(model, samples, prompts)
    from rolltree.bench.demo_workload import demo_workload

    made = replace(demo_workload(prompts, samples), model=model)
    return _trained(made, train_epochs) if train_epochs else made


def _trained(made: Workload, epochs: int) -> Workload:
    """The model after epochs of GRPO in float32 on these prompts, and all its rollouts, which warm the caches."""
    from benchmarks.gpu.training import settings, train
    from rolltree.trl import RolloutFunction

    sums = task("demo", len(made.prompts))
    config = settings(sums, prompts=len(made.prompts), samples=made.samples, epochs=epochs, max_draft=16)
    start: Any = copy.deepcopy(made.model)
    done = train(start.to(torch.float32), sums, config, RolloutFunction(slots=config.slots, seed=config.seed))
    remembered = [
        Remembered(as_tokens(prompt), as_tokens(rollout), version)
        for version, (asked, given) in enumerate(zip(done.prompts, done.completions, strict=True))
        for prompt, rollout in zip(asked, given, strict=True)
    ]
    name = f"{made.name} after {epochs} epochs of GRPO"
    return replace(made, name=name, model=done.model.to(made.model.dtype), remembered=remembered)


def smollm2_workload(model: PreTrainedModel, samples: int, prompts: int) -> Workload:
    """Sums of reasoning-gym for SmolLM2-135M."""
    from examples.smollm2.rollouts import chat_ids, load_problems

    tokenizer = load_smollm2_tokenizer()
    end = int(tokenizer.eos_token_id)
    return Workload(
        name="smollm2-135m, chain_sum",
        model=model,
        prompts=[chat_ids(tokenizer, question) for question, _ in load_problems(prompts, seed=0)],
        samples=samples,
        max_tokens=SMOLLM2_TOKENS,
        stop_token_ids=(end,),
        pad_token_id=end,
    )
