"""Models that vLLM can load, as folders, with prompts: real ones by name or path, and the demo's in larger shapes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.enlarged import enlarge
from benchmarks.gpu.needs import REAL
from benchmarks.gpu.shapes import DUMMY, load
from rolltree.bench.demo_workload import demo_workload
from rolltree.demo.assets import PROMPT_SEED
from rolltree.demo.task import sample_problems
from rolltree.errors import InvalidInputError

GIVEN_TOKENS = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model and what it is asked."""

    name: str
    folder: str
    prompts: list[list[int]]
    """All different."""
    sampling: dict[str, Any]
    """As of vLLM's SamplingParams, but for temperature and seed."""
    arguments: tuple[str, ...] = ()
    """As of `vllm serve`, where the folder needs some."""


@contextmanager
def subject(name: str, device: str, dtype: str, *, prompts: int, max_tokens: int | None) -> Iterator[Subject]:
    """A model for the duration of the block: real by name, made by the shape's name, or the folder of one.

    Args:
        name: of `shapes.MODELS`, or a folder with config.json.
        device: where a made one is made.
        dtype: of its weights.
        prompts: how many.
        max_tokens: of a rollout; None: the model's own number.

    Raises:
        InvalidInputError: there is no such model.
        MissingDependencyError: the package with the weights is not installed.

    """
    if Path(name, "config.json").is_file():
        yield _given(name, prompts, max_tokens or GIVEN_TOKENS)
        return
    with tempfile.TemporaryDirectory(prefix="rolltree-gpu-bench-") as folder:
        build = _real if name in REAL else _made
        yield build(name, folder, device, dtype, prompts, max_tokens)
        _empty_cache()


def _given(folder: str, prompts: int, max_tokens: int) -> Subject:
    """Sums as text, with their solution to be written out."""
    from rolltree.replay.tokenizing import TextTokenizer

    tokenizer = TextTokenizer(folder)
    asked = [
        f"Work out {problem.prompt.rstrip('=')} step by step." for problem in sample_problems(prompts, PROMPT_SEED)
    ]
    ids = [tokenizer.prompt(text, special=True).tolist() for text in asked]
    return Subject(name=folder, folder=folder, prompts=ids, sampling={"max_tokens": max_tokens})


def _real(name: str, folder: str, device: str, dtype: str, prompts: int, max_tokens: int | None) -> Subject:
    from benchmarks.gpu.tasks import load_smollm2_tokenizer
    from benchmarks.gpu.text import workload
    from rolltree.demo.assets import load_tokenizer

    made = workload(name, load(name, "cpu", dtype), train_epochs=0, samples=1, prompts=prompts)
    model: Any = made.model
    model.save_pretrained(folder)
    (load_tokenizer() if name == "demo" else load_smollm2_tokenizer()).save_pretrained(folder)
    sampling = {"max_tokens": max_tokens or made.max_tokens, "stop_token_ids": list(made.stop_token_ids)}
    return Subject(name=name, folder=folder, prompts=made.prompts, sampling=sampling)


def _made(name: str, folder: str, device: str, dtype: str, prompts: int, max_tokens: int | None) -> Subject:
    """Of the shape `name`, saying what the demo's model says; without a tokenizer, as it has more words than that."""
    if name not in DUMMY:
        raise InvalidInputError("--model", name, f"a folder with config.json, or one of {', '.join((*REAL, *DUMMY))}")
    model: Any = load(name, device, dtype)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(copy.deepcopy(model.get_output_embeddings()))
    sums = demo_workload(prompts)
    enlarge(model, sums.model)
    model.save_pretrained(folder)
    sampling = {"max_tokens": max_tokens or sums.max_tokens, "stop_token_ids": list(sums.stop_token_ids)}
    arguments = ("--skip-tokenizer-init",)
    return Subject(name=name, folder=folder, prompts=sums.prompts, sampling=sampling, arguments=arguments)


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
