"""The demo's model and prompts as a workload for `bench engine`, as shipped or after some epochs of GRPO."""

from __future__ import annotations

from rolltree.bench.engine import Workload
from rolltree.bench.trained import Remembered, train
from rolltree.demo.assets import PROMPT_SEED, load_model, load_tokenizer
from rolltree.demo.config import DemoConfig
from rolltree.demo.task import sample_problems


def demo_workload(
    prompts: int = 64, samples: int = 8, max_tokens: int = 176, *, train_epochs: int = 0, slots: int = 32
) -> Workload:
    """Sums of two-digit numbers by the 1M-parameter model, at temperature 1.

    With `train_epochs`, the model is first trained by GRPO over the same prompts, and its rollouts warm the caches.
    """
    tokenizer = load_tokenizer()
    ids = [tokenizer(problem.prompt)["input_ids"] for problem in sample_problems(prompts, seed=PROMPT_SEED)]
    model, remembered = load_model(), list[Remembered]()
    if train_epochs:
        config = DemoConfig(epochs=train_epochs, prompts=prompts, samples=samples, max_tokens=max_tokens, slots=slots)
        model, remembered = train(config)
    return Workload(
        name="demo-1m" + (f" after {train_epochs} epochs of GRPO" if train_epochs else ""),
        model=model,
        remembered=remembered,
        prompts=ids,
        samples=samples,
        max_tokens=max_tokens,
        stop_token_ids=(int(tokenizer.eos_token_id),),
        pad_token_id=int(tokenizer.pad_token_id),
    )
