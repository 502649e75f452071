"""The demo's model and prompts as a workload for `bench engine`."""

from __future__ import annotations

from rolltree.bench.engine import Workload
from rolltree.demo.assets import PROMPT_SEED, load_model, load_tokenizer
from rolltree.demo.task import sample_problems


def demo_workload(prompts: int = 64, samples: int = 8, max_tokens: int = 176) -> Workload:
    """Sums of two-digit numbers by the shipped 1M-parameter model, at temperature 1."""
    tokenizer = load_tokenizer()
    ids = [tokenizer(problem.prompt)["input_ids"] for problem in sample_problems(prompts, seed=PROMPT_SEED)]
    return Workload(
        name="demo-1m",
        model=load_model(),
        prompts=ids,
        samples=samples,
        max_tokens=max_tokens,
        stop_token_ids=(int(tokenizer.eos_token_id),),
        pad_token_id=int(tokenizer.pad_token_id),
    )
