"""The rollout-only side of the race: the same prompts sampled epoch after epoch from a policy that stands still."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch

from rolltree.cache import RolloutCache
from rolltree.config import DraftConfig
from rolltree.demo.config import DemoConfig
from rolltree.demo.smollm2 import load, load_problems
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.engine.cost import measure_cost
from rolltree.sampling import SamplingParams
from rolltree.trl.generation import generate
from rolltree.trl.history import RolloutRecord
from rolltree.trl.settings import request_seed

_NUMBER = re.compile(r"-?\d+")


class SamplingRun:
    """Rolls out one batch of prompts per `advance`; see `rolltree.demo.race.Side`."""

    def __init__(
        self, config: DemoConfig, model: Any, tokenizer: Any, problems: list[tuple[str, Any]], *, speculate: bool
    ) -> None:
        self.completions: list[list[list[int]]] = []
        self.rewards: list[float] = []
        self.history: list[RolloutRecord] = []
        self.generate_seconds: list[float] = []
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._time_generate = config.compare_generate and not speculate
        self._scorers: list[Callable[[str], float]] = [scorer for _, scorer in problems]
        self._prompts = [self._tokenise(question) for question, _ in problems]
        self._engine = self._make_engine(speculate)

    def advance(self) -> None:
        """Roll out the next batch."""
        batch = len(self.history)
        per_batch = self._config.batch // self._config.samples
        first = batch % self._config.steps_per_epoch * per_batch
        chosen = [i for i in range(first, first + per_batch) for _ in range(self._config.samples)]
        prompts = [self._prompts[i] for i in chosen]
        requests = [Request(ids, self._sampling(batch, i)) for i, ids in enumerate(prompts)]
        results, record = generate(self._engine, requests, step=batch, training=False)
        self.history.append(record)
        self.completions.append([result.token_ids for result in results])
        texts = self._tokenizer.batch_decode(self.completions[-1], skip_special_tokens=True)
        scores = [self._scorers[i](last_number(text)) for i, text in zip(chosen, texts, strict=True)]
        if self._time_generate:
            self.generate_seconds.append(self._stock_seconds(prompts))
        self.rewards.append(sum(scores) / len(scores))

    def stop(self) -> None:
        """Nothing to release."""

    def weights_sha256(self) -> None:
        """Nothing was trained."""
        return

    def _make_engine(self, speculate: bool) -> Engine:
        config = self._config
        drafter = None
        if speculate:
            draft = DraftConfig(max_draft=config.max_draft)
            cost = measure_cost(self._model, slots=config.slots, max_draft=config.max_draft)
            drafter = TreeDrafter(RolloutCache(), draft, cost=cost)
        length = max(map(len, self._prompts)) + config.max_tokens
        return Engine(
            self._model, EngineConfig(slots=config.slots, max_length=length, max_draft=config.max_draft), drafter
        )

    def _tokenise(self, question: str) -> list[int]:
        ids = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        return list(map(int, ids))

    def _sampling(self, batch: int, sample: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=self._config.max_tokens,
            stop_token_ids=(self._tokenizer.eos_token_id,),
            seed=request_seed(self._config.seed, False, batch, 0, 0, sample),
        )

    def _stock_seconds(self, prompts: list[list[int]]) -> float:
        inputs = self._tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            start = time.perf_counter()
            self._model.generate(**inputs, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=self._config.max_tokens)
            return time.perf_counter() - start


def last_number(text: str) -> str:
    """The last integer in `text`, which is taken for the answer; empty without one."""
    found = _NUMBER.findall(text.replace(",", ""))
    return found[-1] if found else ""


def make_sides(config: DemoConfig) -> tuple[SamplingRun, SamplingRun]:
    """Plain and speculative side over one model."""
    problems = load_problems(config.prompts, config.seed)  # first: it fails fastest
    model, tokenizer = load()
    plain, fast = (SamplingRun(config, model, tokenizer, problems, speculate=flag) for flag in (False, True))
    return plain, fast
