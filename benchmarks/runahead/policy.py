"""The demo's model as a policy: standing still, or moving towards one after epochs of GRPO."""

from __future__ import annotations

from benchmarks.runahead.engine import Policy
from rolltree.bench.trained import train
from rolltree.demo.assets import load_model, load_tokenizer
from rolltree.demo.config import DemoConfig
from rolltree.demo.task import sample_problems

PROMPTS_SEED = 20_000
"""Not the demo's: its shipped model has seen no prompt of either."""


def demo_policy(*, prompts: int = 4096, max_tokens: int = 176, train_epochs: int = 0) -> Policy:
    """Sums of two-digit numbers by the 1M-parameter model. A step of drift is an optimizer step of that training."""
    tokenizer = load_tokenizer()
    ids = [tokenizer(problem.prompt)["input_ids"] for problem in sample_problems(prompts, seed=PROMPTS_SEED)]
    model, goal, drift = load_model(), {}, 0.0
    if train_epochs:
        config = DemoConfig(epochs=train_epochs)
        trained, remembered = train(config)
        goal = {name: weight.detach().to(model.device) for name, weight in trained.named_parameters()}
        drift = 1 / (remembered[-1].version + 1)
    return Policy(
        name="demo-1m", model=model, prompts=ids, max_tokens=max_tokens,
        stop_token_ids=(int(tokenizer.eos_token_id),), goal=goal, drift=drift,
    )  # fmt: skip
