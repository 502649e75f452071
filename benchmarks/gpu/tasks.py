"""What the GPU benchmark trains its real models on: sums for the demo's model, reasoning-gym problems for SmolLM2-135M.

Problems and rewards only; no model is loaded here. Same count, same problems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from examples.smollm2.rollouts import converted_folder, last_number, load_problems
from rolltree.demo.assets import PROMPT_SEED
from rolltree.demo.assets import load_tokenizer as load_demo_tokenizer
from rolltree.demo.task import sample_problems
from rolltree.errors import InvalidInputError

SMOLLM2_TOKENS = 96  # of a completion: answers are short sums
PRODUCTS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # the model solves one in eight
SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}  # one in 25
Scorer = Callable[[str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Problems, and how their answers are judged."""

    name: str
    tokenizer: Any
    rows: dict[str, list[Any]]
    """Columns of the data set: `prompt` (text, or messages for the chat template), and what `reward` asks for."""
    reward: Callable[..., list[float]]
    """TRL's reward function: `reward(completions=…, **columns)`."""
    max_tokens: int
    """Of a completion."""
    learning_rate: float


def task(model: str, prompts: int) -> Task:
    """The task of a real model, with so many prompts.

    Raises:
        InvalidInputError: a model without text.
        MissingDependencyError: reasoning-gym or the weights are not installed; the message has the pip command.

    """
    if model == "demo":
        return _demo(prompts)
    if model == "smollm2-135m":
        return _smollm2(prompts)
    raise InvalidInputError("--model", model, "demo or smollm2-135m", "Dummy weights have no text to learn.")


def _demo(prompts: int) -> Task:
    from rolltree.demo.training import problem_rewards

    problems = sample_problems(prompts, PROMPT_SEED)
    return Task(
        name="sums of two-digit numbers", tokenizer=load_demo_tokenizer(), reward=problem_rewards, max_tokens=176,
        rows={"prompt": [p.prompt for p in problems], "numbers": [list(p.numbers) for p in problems]},
        learning_rate=1e-4,
    )  # fmt: skip


def _smollm2(prompts: int) -> Task:
    problems = reasoning_problems(prompts)
    scorers = [scorer for _, scorer in problems]

    def reward(completions: list[Any], index: list[int], **_: Any) -> list[float]:
        return [scorers[i](last_number(_text(c))) for i, c in zip(index, completions, strict=True)]

    return Task(
        name="reasoning-gym products and chain_sum", tokenizer=load_smollm2_tokenizer(), reward=reward,
        rows={
            "prompt": [[{"role": "user", "content": question}] for question, _ in problems],
            "index": list(range(len(problems))),
        },
        max_tokens=SMOLLM2_TOKENS, learning_rate=1e-5,
    )  # fmt: skip


def reasoning_problems(count: int) -> list[tuple[str, Scorer]]:
    """Distinct problems: products of one digit for a half, sums of two terms for the rest."""
    products = dict(load_problems(8 * count, 0, "products", PRODUCTS))
    sums = dict(load_problems(4 * count, 0, "chain_sum", SUMS))
    half = list(products.items())[: count // 2]
    return (half + list(sums.items()))[:count]


def load_smollm2_tokenizer() -> Any:
    """The tokenizer of the converted model, which must have been loaded once."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(converted_folder(), local_files_only=True)


def _text(completion: Any) -> str:
    """A completion is a text, or the messages of a conversation."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
