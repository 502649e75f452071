"""`rolltree bench engine`: rollout seconds of the built-in engine over epochs, with every drafter and stock `generate`.

Each epoch generates the same prompts with new seeds; the policy is frozen meanwhile. Caches start empty, or warmed by
the rollouts of the training that made the policy. Within an epoch all drafters get the same
requests one after the other, so ratios are paired; with coupled noise they also produce the same rollouts, which is
checked. Everything is repeated with fresh caches; figures are medians over the repeats, `spread` the extremes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from rolltree import machine
from rolltree.bench.trained import Remembered
from rolltree.budget import CostModel
from rolltree.config import DraftConfig
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request, Result
from rolltree.engine.cost import measure_cost
from rolltree.errors import InvalidInputError
from rolltree.metrics import Counters
from rolltree.replay.drafters.text import NgramDrafter, SuffixDrafter
from rolltree.sampling import SamplingParams
from rolltree.types import Drafter

BASELINE = "none"
STOCK = "generate"
CHUNKED = "none-chunked"
DRAFTERS = (STOCK, CHUNKED, BASELINE, "ngram", "suffix", "rolltree", "rolltree-tree")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is generated."""

    name: str
    model: PreTrainedModel
    prompts: list[list[int]]
    samples: int
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int = 0
    temperature: float = 1.0
    remembered: list[Remembered] = field(default_factory=list)
    """Earlier rollouts that every drafter with a memory is given first."""

    def requests(self, epoch: int, count: int) -> list[Request]:
        """The first `count` requests of an epoch, samples of a prompt side by side."""
        made = []
        for index in range(count):
            seed = (epoch << 32) + index
            sampling = SamplingParams(
                temperature=self.temperature, max_tokens=self.max_tokens, stop_token_ids=self.stop_token_ids, seed=seed
            )
            made.append(Request(self.prompts[index // self.samples % len(self.prompts)], sampling))
        return made


@dataclass(slots=True)
class _Run:
    seconds: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    sums: Counters = field(default_factory=Counters)
    """Of the last repetition."""
    identical: bool = True


def run_engine(
    workload: Workload,
    *,
    batches: Sequence[int],
    drafters: Sequence[str] = DRAFTERS,
    epochs: int = 5,
    repeats: int = 3,
    rollouts: int = 64,
    cost: CostModel | None = None,
    max_draft: int = 16,
    compile: bool = False,
    progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:
    """Measure every drafter at every batch size.

    Args:
        workload: model, prompts and sampling.
        batches: slots of the engine; stock `generate` gets padded batches of that size.
        drafters: names out of `DRAFTERS`; "none" is always run, as the baseline.
        epochs: times that all prompts are generated; the first finds an empty cache.
        repeats: times that everything is repeated with fresh caches.
        rollouts: requests of an epoch, at least one batch.
        cost: frozen step-cost model; measured for each batch size when None.
        max_draft: draft tokens of a request and step at most.
        compile: the sampler; see EngineConfig.
        progress: called with the name of each case before it runs.

    Returns:
        `{"cases": [{engine, model, device, batch, epoch, drafter, tokens, seconds, tokens_per_step, speedup, ...}]}`;
        `speedup` is seconds of "none" over seconds of the case, per token. `costs` are the step-cost models by batch;
        `partial` says that Ctrl-C ended it: what was complete is there.

    """
    unknown = set(drafters) - set(DRAFTERS)
    if unknown:
        raise InvalidInputError("--drafter", sorted(unknown), f"out of {', '.join(DRAFTERS)}")
    names = [BASELINE, *[d for d in drafters if d != BASELINE]]
    cases: list[dict[str, object]] = []
    costs: dict[str, dict[str, float]] = {}
    interrupted = False
    for batch in batches:
        model = cost or measure_cost(workload.model, slots=batch, max_draft=max_draft)
        costs[str(batch)] = asdict(model)
        runs: dict[tuple[str, int], _Run] = {(name, e): _Run() for name in names for e in range(epochs)}
        try:
            for repeat in range(repeats):
                generators = {name: _generator(name, workload, batch, model, max_draft, compile) for name in names}
                for epoch in range(epochs):
                    progress(f"batch {batch}, run {repeat + 1} of {repeats}, epoch {epoch + 1} of {epochs}")
                    requests = workload.requests(epoch, max(batch, rollouts))
                    _epoch(generators, requests, {name: runs[name, epoch] for name in names}, epoch)
        except KeyboardInterrupt:
            interrupted = True
        cases += [_case(workload, batch, name, epoch, run) for (name, epoch), run in runs.items() if run.ratio]
        if interrupted:
            break
    setting: dict[str, object] = {"repeats": repeats, "threads": torch.get_num_threads(), "partial": interrupted}
    setting["machine"] = machine.describe()
    return {"cases": cases, "costs": costs, **setting}


Generate = Callable[[list[Request], int], tuple[list[Result] | None, Counters]]


def _epoch(generators: dict[str, Generate], requests: list[Request], runs: dict[str, _Run], epoch: int) -> None:
    reference: list[list[int]] = []
    base = 0.0
    for name, generate in generators.items():
        run = runs[name]
        begin = time.perf_counter()
        results, run.sums = generate(requests, epoch)
        seconds = time.perf_counter() - begin
        run.seconds.append(seconds)
        if name == BASELINE:
            base = seconds / run.sums.tokens
            reference = [r.token_ids for r in results or []]
        run.ratio.append(base / (seconds / run.sums.tokens))
        run.identical &= results is None or [r.token_ids for r in results] == reference


def _generator(name: str, workload: Workload, batch: int, cost: CostModel, max_draft: int, compile: bool) -> Generate:
    if name == STOCK:
        return lambda requests, epoch: (None, _stock(workload, requests, batch))
    drafter = make_drafter(name, cost, max_draft, workload.remembered)
    first = workload.remembered[-1].version + 1 if workload.remembered else 0
    room = max(map(len, workload.prompts)) + workload.max_tokens
    config = EngineConfig(slots=batch, max_length=room, max_draft=max_draft, compile=compile)
    engine = Engine(workload.model, config, drafter)

    def generate(requests: list[Request], epoch: int) -> tuple[list[Result], Counters]:
        before = engine.stats.copy()
        if isinstance(drafter, TreeDrafter):
            drafter.cache.set_version(first + epoch)
        size = batch if name == CHUNKED else len(requests)
        results = [r for i in range(0, len(requests), size) for r in engine.generate(requests[i : i + size])]
        done = engine.stats.since(before)
        done.tokens = sum(len(r.token_ids) for r in results)  # with those of the prefill
        return results, done

    return generate


def make_drafter(
    name: str, cost: CostModel | None, max_draft: int, remembered: Sequence[Remembered] = ()
) -> Drafter | None:
    """Return the drafter `name` of `DRAFTERS`; those with a memory have taken in what is remembered, oldest first."""
    if name == "ngram":
        return NgramDrafter(max_draft=max_draft)
    if name == "suffix":
        peer = SuffixDrafter(max_draft=max_draft, tree=False)
        for earlier in remembered:
            peer.add(earlier.prompt, earlier.rollout)
        return peer
    if name not in ("rolltree", "rolltree-tree"):
        return None
    shape: Literal["chain", "tree"] = "tree" if name == "rolltree-tree" else "chain"
    drafter = TreeDrafter(config=DraftConfig(shape=shape, max_draft=max_draft), cost=cost)
    for earlier in remembered:
        drafter.cache.set_version(earlier.version)
        drafter.cache.add(earlier.prompt, earlier.rollout)
    return drafter


def _stock(workload: Workload, requests: list[Request], batch: int) -> Counters:
    """Transformers' own `generate` on left-padded batches; tokens after the stop token do not count."""
    model, total, rows = workload.model, 0, 0
    for i in range(0, len(requests), batch):
        prompts = [list(r.prompt_token_ids) for r in requests[i : i + batch]]
        width = max(map(len, prompts))
        ids = torch.tensor([[workload.pad_token_id] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        generator: Any = model
        with torch.inference_mode():
            out = generator.generate(
                input_ids=ids, attention_mask=mask, do_sample=workload.temperature > 0,
                temperature=workload.temperature or None, top_k=0, top_p=1.0, max_new_tokens=workload.max_tokens,
                eos_token_id=list(workload.stop_token_ids), pad_token_id=workload.pad_token_id,
            )  # fmt: skip
        for row in out[:, width:].tolist():
            ends = [row.index(stop) + 1 for stop in workload.stop_token_ids if stop in row]
            total += min(ends, default=len(row))
        rows += out[:, width:].numel()
    return Counters(tokens=total, row_steps=rows)


def _case(workload: Workload, batch: int, name: str, epoch: int, run: _Run) -> dict[str, object]:
    return {
        "engine": "transformers" if name == STOCK else "builtin",
        "model": workload.name,
        "device": str(workload.model.device),
        "dtype": str(workload.model.dtype).removeprefix("torch."),
        "batch": batch,
        "remembered_rollouts": len(workload.remembered),
        "epoch": epoch + 1,
        "drafter": name,
        "tokens": run.sums.tokens,
        "seconds": median(run.seconds),
        "tokens_per_second": run.sums.tokens / median(run.seconds),
        "tokens_per_step": run.sums.tokens_per_step,
        "drafted_per_step": run.sums.ratio("drafted_per_step"),
        "acceptance_rate": run.sums.acceptance_rate,
        "speedup": median(run.ratio),
        "spread": [min(run.ratio), max(run.ratio)],
        "identical_rollouts": run.identical if name not in (STOCK,) else None,
    }
